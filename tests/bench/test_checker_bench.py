"""Cost of judging: the checkers and the twin's replay over one long history."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.lockstep import replay_history
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.trace import HistoryWriter, Record
from pagetwin.simulator.replica import Replica

CACHE = CacheConfig(num_blocks=200, block_size=16)
SCHEDULER = SchedulerConfig(max_model_len=512, max_num_seqs=32, max_num_batched_tokens=256)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """64 requests that share a prefix of 64 tokens, in a pool that is too small for 32 of them."""
    config = EngineConfig(cache=CACHE, scheduler=SCHEDULER)
    history = HistoryWriter(keep=True, with_block_tables=True)
    core = EngineCore(config, FingerprintExecutor(CACHE, vocab_size=1000), history=history)
    for i in range(64):
        core.add_request(
            Request(
                request_id=f"{i:03}",
                prompt_token_ids=(*range(64), *(i + k for k in range(i))),
                sampling_params=SamplingParams(max_tokens=64),
            )
        )
    while core.has_unfinished_requests():
        core.step()
    return history.records


def test_checking_a_history(benchmark: BenchmarkFixture, records: list[Record]) -> None:
    assert benchmark(check_all, records) == []


def test_replaying_a_history_on_the_twin(
    benchmark: BenchmarkFixture, records: list[Record]
) -> None:
    report = benchmark(lambda: replay_history(records, Replica(CACHE, SCHEDULER)))
    assert report.equal, report.explain()
    assert report.decisions_compared > 4000
