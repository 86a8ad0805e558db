"""The workloads are the ones that other engines were measured on, token for token."""

import pytest

from pagetwin.conformance.bench.workloads import WORKLOADS, digest, shrunk, single

# Requests, prompt tokens, output tokens.
SIZES = {
    "uniform": (256, 139791, 150674),
    "chat": (512, 111433, 132485),
    "single": (1, 128, 256),
    "shared_prefix": (256, 278528, 16384),
    "long_prefill": (16, 131072, 256),
}
DIGESTS = {
    "uniform": "1f4766d818804f199f5c0891df180160daa9a0af96880a9beecf5559cbb1a7c7",
    "chat": "2c3ab366bd44da413fe9bd1f3eab19d3dbc5611192c35695a419d3b19d746393",
    "single": "17b56b37364d8866a3c8dcbaf36b3710bfb18cefd6134d4313b67e988c07013e",
    "shared_prefix": "b0530a577b8c770b16bd40c97858ef92830c8bc32cf43663753de63845689d05",
    "long_prefill": "c5e6a90644cf11cf7231309a6ae6ac14d28a890b242128fcd6a92f704bf9e9da",
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_one_that_peers_were_measured_on(name: str) -> None:
    workload = WORKLOADS[name](10000)
    prompt_tokens = sum(len(request.prompt_token_ids) for request in workload)
    output_tokens = sum(request.num_output_tokens for request in workload)
    assert (len(workload), prompt_tokens, output_tokens) == SIZES[name]
    assert digest(workload) == DIGESTS[name]


def test_so_is_the_warm_up() -> None:
    warm_up = single(num_prompt_tokens=32, num_output_tokens=8)
    assert digest(warm_up) == "a27492fdbdce31dbab0dbc6026ecff6c38b22a4ddf88135af2107d5acc5528f4"


def test_a_shrunk_workload_keeps_common_prefixes_and_own_ends() -> None:
    workload = shrunk(WORKLOADS["shared_prefix"](10000), 32)
    prompts = [request.prompt_token_ids for request in workload]
    assert [len(prompt) for prompt in prompts] == [34] * 8
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert {request.num_output_tokens for request in workload} == {2}


@pytest.mark.parametrize("name", WORKLOADS)
def test_no_workload_shrinks_to_nothing(name: str) -> None:
    for prompt, output in shrunk(WORKLOADS[name](10000), 10**6):
        assert prompt
        assert output == 1


def test_a_smaller_vocabulary_draws_from_it_alone() -> None:
    assert max(max(prompt) for prompt, _ in WORKLOADS["single"](50)) < 50
