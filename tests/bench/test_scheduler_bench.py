"""Speed of the torch-free half: the block pool, one scheduler step, whole fingerprint runs."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pagetwin.engine.block_pool import BlockPool
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.prefix_keys import ROOT_KEY, BlockKey
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import StepPlan, StepResult


@pytest.mark.parametrize("num_blocks", [1_000, 30_000, 1_000_000])
def test_a_million_takes_frees_and_hits_of_the_pool(
    benchmark: BenchmarkFixture, num_blocks: int
) -> None:
    """Per round 1,000,000 operations: 250,000 takes, cached frees, hits and frees."""
    pool = BlockPool(num_blocks)

    def round_trips() -> None:
        for index in range(250_000):
            block_id = pool.take()
            pool.cache(block_id, BlockKey(b"%d" % index, ROOT_KEY, (index,), ()))
            pool.release(block_id)
            pool.hold(block_id)
            pool.release(block_id)

    benchmark.pedantic(round_trips, rounds=3)
    assert pool.num_free == num_blocks - 1


def _running_scheduler(num_seqs: int) -> Scheduler:
    """A scheduler with that many sequences in decode, block edges spread over the steps."""
    scheduler = Scheduler(
        CacheConfig(num_blocks=30_000, block_size=16),
        SchedulerConfig(
            max_model_len=8192, max_num_seqs=num_seqs, max_num_batched_tokens=num_seqs * 300
        ),
    )
    for index in range(num_seqs):
        scheduler.add_request(
            Request(
                request_id=f"{index:04d}",
                prompt_token_ids=tuple(range(index, index + 200 + index % 16)),
                sampling_params=SamplingParams(max_tokens=None, ignore_eos=True),
            )
        )
    plan = scheduler.schedule()
    assert plan is not None
    assert len(plan.scheduled) == num_seqs
    scheduler.update(plan, _result(plan))
    return scheduler


def _result(plan: StepPlan) -> StepResult:
    return StepResult(step=plan.step, sampled={entry.seq_id: 7 for entry in plan.scheduled})


def test_one_step_of_256_running_sequences(benchmark: BenchmarkFixture) -> None:
    """schedule() and update() together, without what an executor does between them."""
    scheduler = _running_scheduler(256)
    sampled = {f"{index:04d}/0": 7 for index in range(256)}

    def step() -> None:
        plan = scheduler.schedule()
        assert plan is not None
        scheduler.update(plan, StepResult(step=plan.step, sampled=sampled))

    benchmark.pedantic(step, rounds=500, warmup_rounds=20)


def test_planning_256_running_sequences(benchmark: BenchmarkFixture) -> None:
    """schedule() alone; the update is not timed."""
    scheduler = _running_scheduler(256)
    plans: list[StepPlan] = []

    def close_last() -> None:
        if plans:
            plan = plans.pop()
            scheduler.update(plan, _result(plan))

    def plan_one() -> None:
        plan = scheduler.schedule()
        assert plan is not None
        plans.append(plan)

    benchmark.pedantic(plan_one, setup=close_last, rounds=500)


def test_passing_over_255_that_wait_for_one_prefix(benchmark: BenchmarkFixture) -> None:
    """schedule() alone, while a prefix of 512 blocks is computed in chunks of 32."""
    scheduler = Scheduler(
        CacheConfig(num_blocks=30_000, block_size=16),
        SchedulerConfig(
            max_model_len=16_384, long_prefill_token_threshold=512, wait_for_prefix=True
        ),
    )
    for index in range(256):
        scheduler.add_request(
            Request(
                request_id=f"{index:04d}",
                prompt_token_ids=(*range(8192), 10_000 + index),
                sampling_params=SamplingParams(max_tokens=None),
            )
        )
    plans: list[StepPlan] = []

    def close_last() -> None:
        if plans:
            scheduler.update(plans[-1], StepResult(step=plans[-1].step))

    def plan_one() -> None:
        plan = scheduler.schedule()
        assert plan is not None
        plans.append(plan)

    benchmark.pedantic(plan_one, setup=close_last, rounds=15)
    assert {len(plan.scheduled) for plan in plans} == {1}
    assert scheduler.counters().num_waiting == 255


def test_fingerprint_engine_with_8_sequences(benchmark: BenchmarkFixture) -> None:
    """One round is 1,000 engine steps: plan, execute over integers, close."""
    config = EngineConfig(
        cache=CacheConfig(num_blocks=2_000),
        scheduler=SchedulerConfig(max_model_len=4096, max_num_seqs=8, max_num_batched_tokens=512),
    )

    def fresh_core() -> tuple[tuple[EngineCore], dict[str, object]]:
        core = EngineCore(config, FingerprintExecutor(config.cache))
        for index in range(8):
            core.add_request(
                Request(
                    request_id=str(index),
                    prompt_token_ids=tuple(range(index, index + 50)),
                    sampling_params=SamplingParams(max_tokens=None),
                )
            )
        return (core,), {}

    def thousand_steps(core: EngineCore) -> None:
        for _ in range(1_000):
            assert core.step() is not None

    benchmark.pedantic(thousand_steps, setup=fresh_core, rounds=3)
