"""What is written down of another engine's run, where a request has several samples."""

from pagetwin.conformance.adapters.foreign import ForeignRun, Sampled
from pagetwin.conformance.adapters.protocol import EngineInfo
from pagetwin.conformance.observation import Finished, PromptScored, TokenSeen
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import Counters
from pagetwin.engine.trace import ResultRecord

COUNTERS = Counters(num_waiting=0, num_running=0, num_free_blocks=8)
TWO = Request(
    request_id="r",
    prompt_token_ids=(5, 6),
    sampling_params=SamplingParams(n=2, temperature=1.0, max_tokens=2),
)


def begun(cancel_after: int | None = None) -> ForeignRun:
    info = EngineInfo(name="other", version="1", vocab_size=99)
    run = ForeignRun(info, CacheConfig(num_blocks=9), SchedulerConfig(max_model_len=64))
    run.submitted(TWO, COUNTERS, cancel_after=cancel_after)
    return run


def test_a_request_lives_until_its_last_sample_ends() -> None:
    run = begun()
    run.closed(0, [Sampled("r", 7), Sampled("r", 8, sample_index=1)], COUNTERS)
    run.closed(1, [Sampled("r", 9, finish_reason="length", sample_index=1)], COUNTERS)
    assert run.is_live("r")
    run.closed(2, [Sampled("r", 10, finish_reason="stop")], COUNTERS)
    assert not run.has_live_requests()
    seen = [(one.sample_index, one.token_id) for one in run.observations if type(one) is TokenSeen]
    assert seen == [(0, 7), (1, 8), (1, 9), (0, 10)]
    ends = [(one.sample_index, one.reason) for one in run.observations if type(one) is Finished]
    assert ends == [(1, "length"), (0, "stop")]
    results = [one for one in run.records if isinstance(one, ResultRecord)]
    assert results[0].sampled == {"r/0": 7, "r/1": 8}
    assert [one.seq_id for one in results[1].finished] == ["r/1"]


def test_a_client_loses_patience_with_the_first_sample() -> None:
    run = begun(cancel_after=1)
    run.closed(0, [Sampled("r", 8, sample_index=1)], COUNTERS)
    assert run.due_hang_ups() == []
    run.closed(1, [Sampled("r", 7)], COUNTERS)
    assert run.due_hang_ups() == ["r"]


def test_scores_of_the_prompt_are_the_requests_and_not_each_samples() -> None:
    run = begun()
    run.scored("r", [-1.0])
    run.scored("r", [-1.0])
    assert sum(isinstance(one, PromptScored) for one in run.observations) == 1
