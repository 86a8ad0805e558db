"""Which rows of a step are wanted, where log-probabilities of a prompt are."""

import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.draws import Draws
from pagetwin.engine.input_batch import InputBatch
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import IntroducedSequence, ScheduledSequence, StepPlan

CACHE = CacheConfig(num_blocks=14, block_size=4)
SCHEDULER = SchedulerConfig(max_model_len=32, max_num_seqs=6, max_num_batched_tokens=16)
PROMPT = (10, 11, 12, 13, 14)


@pytest.mark.parametrize(
    ("computed", "count", "targets"),
    [
        (0, 5, (11, 12, 13, 14)),
        (1, 1, (12,)),
        (3, 2, (14,)),
        (4, 1, ()),  # The prompt's last token tells of no other token of the prompt.
        (5, 1, ()),  # A decode that was planned before the first drawn token is known.
    ],
)
def test_only_rows_that_tell_of_prompt_tokens_are_wanted(
    computed: int, count: int, targets: tuple[int, ...]
) -> None:
    params = SamplingParams(prompt_logprobs=1)
    request = Request(request_id="r", prompt_token_ids=PROMPT, sampling_params=params)
    introduced = IntroducedSequence(
        seq_id="r/0", request_id="r", sample_index=0, token_ids=PROMPT, block_ids=(1, 2)
    )
    batch = InputBatch(CACHE, SCHEDULER)
    batch.apply(StepPlan(step=0, new_requests=(request,), introduced=(introduced,)))
    draws_a_token = computed + count >= len(PROMPT)
    scheduled = (ScheduledSequence("r/0", computed, count, samples=draws_a_token),)
    draws = Draws.of(scheduled, batch.build_inputs(scheduled), batch)
    assert [chunk.targets for chunk in draws.prompt_chunks] == ([targets] if targets else [])
    assert draws.wants_all_rows == bool(targets)
    assert len(draws.rows) == draws_a_token
