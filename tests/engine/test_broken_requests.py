"""A request whose numbers break down ends alone: a token of its prompt has NaN for an embedding."""

from pathlib import Path

import pytest
import torch

from pagetwin.conformance.adapters.random_checkpoint import RandomModel, write_random_checkpoint
from pagetwin.engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from pagetwin.engine.factory import build_runner
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.models.loader import LoadedModel, load_model
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.sampling_params import SamplingParams

BROKEN = 5
VOCAB = 32


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("broken")
    write_random_checkpoint(RandomModel(vocab_size=VOCAB), folder)
    config = ModelConfig(model=str(folder), skip_tokenizer=True)
    loaded = load_model(config, torch.device("cpu"))
    weight = loaded.model.checkpoint_slots()["model.embed_tokens.weight"]
    with torch.inference_mode():
        weight[BROKEN] = torch.nan
    return loaded


def run(
    loaded: LoadedModel, token: int, budget: int, prompt_logprobs: int | None
) -> dict[str, RequestOutput]:
    """Two sound requests, and between them one whose prompt has `token`; it says one token."""
    config = EngineConfig(
        cache=CacheConfig(num_blocks=40, block_size=4),
        scheduler=SchedulerConfig(max_model_len=64, max_num_seqs=8, max_num_batched_tokens=budget),
        device="cpu",
        debug_invariants=True,
    )
    engine = LLMEngine(config, build_runner(config, loaded), vocab_size=VOCAB)
    sound = SamplingParams(
        temperature=0.0, max_tokens=6, logprobs=2, ignore_eos=True, logit_bias={BROKEN: -100.0}
    )
    own = SamplingParams(
        temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=prompt_logprobs
    )
    engine.add_request("before", [1, 2, 3, 4, 6, 7], sound)
    engine.add_request("broken", [8, 9, token, *range(10, 22)], own)
    engine.add_request("after", [2, 1, 3, 9, 7, 6, 8], sound)
    ended: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        ended |= {output.request_id: output for output in engine.step() if output.finished}
    counters = engine.core.scheduler.counters()
    assert counters.num_free_blocks == 39
    return ended


@pytest.mark.parametrize("budget", [8, 64], ids=["in chunks", "at once"])
@pytest.mark.parametrize("prompt_logprobs", [None, 0, 1])
def test_nan_ends_its_own_request_and_changes_no_bit_of_the_others(
    prompt_logprobs: int | None, budget: int, loaded: LoadedModel
) -> None:
    broken = run(loaded, BROKEN, budget, prompt_logprobs)
    sound = run(loaded, 23, budget, prompt_logprobs)
    [end] = broken["broken"].outputs
    assert (end.finish_reason, end.token_ids) == ("error", ())
    assert "NaN" in str(end.stop_reason)
    assert sound["broken"].outputs[0].finish_reason == "length"
    for name in ("before", "after"):
        assert broken[name].outputs == sound[name].outputs
        assert len(broken[name].outputs[0].token_ids) == 6
