"""Speed of what the host does for a decode step between the plan and the launch."""

from pytest_benchmark.fixture import BenchmarkFixture

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.draws import Draws
from pagetwin.engine.input_batch import InputBatch
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import StepPlan, StepResult
from pagetwin.engine.step_inputs import pad_decodes

NUM_SEQS = 256


def test_inputs_of_a_decode_step_of_256_sequences(benchmark: BenchmarkFixture) -> None:
    """apply, build_inputs, who draws, padding for a graph, and the drawn tokens written down."""
    cache = CacheConfig(num_blocks=30_000)
    config = SchedulerConfig(
        max_model_len=8192, max_num_seqs=NUM_SEQS, max_num_batched_tokens=NUM_SEQS * 300
    )
    scheduler, batch = Scheduler(cache, config), InputBatch(cache, config)
    for index in range(NUM_SEQS):
        scheduler.add_request(
            Request(
                request_id=f"{index:04d}",
                prompt_token_ids=tuple(range(index, index + 200 + index % 16)),
                sampling_params=SamplingParams(max_tokens=None, ignore_eos=True),
            )
        )
    sampled = {f"{index:04d}/0": 7 for index in range(NUM_SEQS)}

    def next_plan() -> tuple[tuple[StepPlan], dict[str, object]]:
        plan = scheduler.schedule()
        assert plan is not None
        scheduler.update(plan, StepResult(step=plan.step, sampled=sampled))
        return (plan,), {}

    def run(plan: StepPlan) -> None:
        batch.apply(plan)
        inputs = batch.build_inputs(plan.scheduled)
        draws = Draws.of(plan.scheduled, inputs, batch)
        if inputs.num_tokens == inputs.num_seqs:
            pad_decodes(inputs, NUM_SEQS + 16)
        batch.append_tokens(draws.rows, sampled)

    (prefill,), _ = next_plan()
    run(prefill)
    benchmark.pedantic(run, setup=next_plan, rounds=500, warmup_rounds=20)
