"""The GPU's runner gives the tokens of its plain twin, and bits that depend on nothing beside."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch

from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.lockstep import replay_history
from pagetwin.engine import factory
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, StepFailed
from pagetwin.engine.factory import build_runner
from pagetwin.engine.gpu_runner import GpuRunner
from pagetwin.engine.llm import LLM
from pagetwin.engine.model_runner import ModelRunner
from pagetwin.engine.models.loader import LoadedModel
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import (
    IntroducedSequence,
    PendingStep,
    ScheduledSequence,
    StepPlan,
)
from pagetwin.engine.step_program import StepProgram
from pagetwin.engine.trace import HeaderRecord
from pagetwin.simulator.replica import Replica

if TYPE_CHECKING:
    from tests.engine.gpu.conftest import Outcome, RunModel

MakePrompts = Callable[..., list[list[int]]]
LENGTHS = [5, 40, 1, 33, 90, 17, 64, 50]
MIXED = [
    SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True),
    SamplingParams(temperature=0.8, top_k=20, seed=3, max_tokens=9),
    SamplingParams(temperature=0.0, max_tokens=6, logprobs=2),
    SamplingParams(temperature=0.0, max_tokens=8, frequency_penalty=0.5, presence_penalty=0.1),
    SamplingParams(temperature=1.0, seed=1, n=2, max_tokens=4),
    SamplingParams(temperature=0.0, max_tokens=5, prompt_logprobs=1),
    SamplingParams(top_p=0.9, min_p=0.01, repetition_penalty=1.2, max_tokens=7),
    SamplingParams(temperature=0.0, max_tokens=8, min_tokens=3),
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
WITH_LOGPROBS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=5)


def assert_same(outcome: "Outcome", expected: "Outcome") -> None:
    assert outcome.tokens == expected.tokens
    assert outcome.logprobs == expected.logprobs


@pytest.mark.parametrize("is_async", [False, True])
def test_every_kind_of_request_gets_the_tokens_of_the_plain_twin(
    run_model: "RunModel",
    prompts: MakePrompts,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    is_async: bool,
) -> None:
    requests = prompts(LENGTHS)
    if device == "cpu":
        monkeypatch.setattr(factory, "ModelRunner", GpuRunner)
    outcome = run_model(requests, MIXED, async_scheduling=is_async)
    monkeypatch.undo()
    monkeypatch.setattr("pagetwin.engine.gpu_runner.GpuRunner", ModelRunner)
    assert_same(outcome, run_model(requests, MIXED, async_scheduling=False))
    assert len({tokens for samples in outcome.tokens for tokens in samples}) == len(LENGTHS) + 1
    assert all(samples[0] for samples in (outcome.logprobs[2],))


@pytest.fixture(scope="module")
def expected() -> dict[str, "Outcome"]:
    """Outcomes of a roomy, plain, unbatched run, made once."""
    return {}


KNOBS: dict[str, dict[str, Any]] = {
    "eager": {"enforce_eager": True},
    "synchronous": {"async_scheduling": False},
    "chunks of 7": {"long_prefill_token_threshold": 7},
    "no prefix cache": {"enable_prefix_caching": False},
    "recompute": {"num_blocks": 16, "preemption_mode": "recompute"},
    "swap": {"num_blocks": 16, "preemption_mode": "swap", "num_host_blocks": 60},
    "blocks of 64": {"block_size": 64, "num_blocks": 60},
    "one at a time": {"max_num_seqs": 1},
    "synchronous and eager": {"async_scheduling": False, "enforce_eager": True},
}


@pytest.mark.gpu
@pytest.mark.parametrize("params", [GREEDY, WITH_LOGPROBS], ids=["tokens", "bits"])
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_tokens_and_bits_do_not_depend_on_how_they_were_computed(
    run_model: "RunModel",
    prompts: MakePrompts,
    expected: dict[str, "Outcome"],
    knobs: dict[str, Any],
    params: SamplingParams,
) -> None:
    requests = prompts([*LENGTHS, 70, 66], shared=30)
    name = str(params.num_logprobs)
    if name not in expected:
        expected[name] = run_model(requests, params)
    outcome = run_model(requests, params, **knobs)
    assert_same(outcome, expected[name])
    graph_sizes = {t.graph_size for t in outcome.timings}
    assert (graph_sizes == {0}) == bool(knobs.get("enforce_eager"))
    assert all(t.device_s > 0 for t in outcome.timings)
    if knobs.get("preemption_mode") == "swap":
        assert outcome.counters.preemptions_swap > 0
    elif "preemption_mode" in knobs:
        assert outcome.counters.preemptions_recompute > 0
    if knobs.get("enable_prefix_caching", True):
        assert outcome.counters.prefix_hit_tokens > 0


@pytest.mark.gpu
@pytest.mark.parametrize("chunk", [0, 7])
def test_rows_that_nobody_samples_from_may_attend_in_the_last_layer_or_not(
    run_model: "RunModel", prompts: MakePrompts, chunk: int
) -> None:
    """They do where some request asks for log-probabilities of its prompt; no bit shows it."""
    requests = prompts(LENGTHS)
    telling = msgspec.structs.replace(WITH_LOGPROBS, prompt_logprobs=0)
    few, every = (
        run_model(requests, params, long_prefill_token_threshold=chunk)
        for params in ([WITH_LOGPROBS] * 8, [WITH_LOGPROBS, telling] * 4)
    )
    assert_same(few, every)


def test_a_device_without_memory_is_a_failed_step_after_which_others_run(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "ModelRunner", GpuRunner)
    scheduler = SchedulerConfig(max_model_len=32, max_num_seqs=2, max_num_batched_tokens=16)
    cache = CacheConfig(num_blocks=9, block_size=16)
    config = EngineConfig(cache=cache, scheduler=scheduler, enforce_eager=True)
    after = msgspec.structs.replace(whole_prompt("s", (5, 6, 7)), step=1)
    expected = build_runner(config, loaded).execute(after)

    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    runner = build_runner(config, loaded)
    with monkeypatch.context() as crowded:
        crowded.setattr(StepProgram, "run", no_memory)
        with pytest.raises(StepFailed, match=r"step 0: no memory .* lower max_num_batched_tokens"):
            runner.execute(whole_prompt("r", (1, 2, 3, 4)))
    result = runner.execute(msgspec.structs.replace(after, dropped=("r/0",), ended_requests=("r",)))
    assert result.sampled == expected.sampled
    assert result.sampled.keys() == {"s/0"}


def whole_prompt(name: str, prompt: tuple[int, ...]) -> StepPlan:
    params = SamplingParams(temperature=0.0)
    seq_id = f"{name}/0"
    return StepPlan(
        step=0,
        new_requests=(Request(request_id=name, prompt_token_ids=prompt, sampling_params=params),),
        introduced=(
            IntroducedSequence(
                seq_id=seq_id, request_id=name, sample_index=0, token_ids=prompt, block_ids=(3,)
            ),
        ),
        scheduled=(ScheduledSequence(seq_id, 0, len(prompt), samples=True),),
    )


@pytest.mark.gpu
def test_a_step_without_a_graph_says_why(run_model: "RunModel", prompts: MakePrompts) -> None:
    outcome = run_model(prompts(LENGTHS), GREEDY)
    assert {bool(t.graph_size) for t in outcome.timings} == {True, False}
    for timings in outcome.timings:
        assert bool(timings.graph_size) != bool(timings.eager_reason)


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_decisions_and_block_tables_are_those_of_the_twin(
    run_model: "RunModel", prompts: MakePrompts, knobs: dict[str, Any]
) -> None:
    most = knobs.get("max_num_seqs", max(params.num_samples for params in MIXED))
    every = [params for params in MIXED + MIXED[:2] if params.num_samples <= most]
    requests = prompts([*LENGTHS, 70, 66][: len(every)], shared=30)
    outcome = run_model(requests, every, **knobs)
    header = outcome.records[0]
    assert isinstance(header, HeaderRecord)
    report = replay_history(outcome.records, Replica(header.cache, header.scheduler))
    assert report.equal, report.explain()
    assert report.block_tables_compared > 0
    assert check_all(outcome.records) == []


@pytest.mark.gpu
def test_too_little_memory_is_refused_with_what_takes_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no GPU memory is left .*utilization=0\.001"):
        LLM(str(folder), skip_tokenizer=True, gpu_memory_utilization=0.001, max_model_len=256)


@pytest.mark.gpu
def test_blocks_fill_the_memory_that_is_allowed(folder: Path) -> None:
    def num_blocks(gib: float) -> int:
        """With so much beyond what is in use, which fits fewer blocks than 512 sequences need."""
        free, total = torch.cuda.mem_get_info()
        llm = LLM(
            str(folder),
            skip_tokenizer=True,
            max_model_len=4096,
            max_num_seqs=512,
            gpu_memory_utilization=(total - free + gib * 2**30) / total,
        )
        return llm.engine.config.cache.num_blocks

    few, many = num_blocks(1.5), num_blocks(2)
    assert 0 < few < many


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_is_begun_without_waiting_for_the_device(
    run_model: "RunModel", prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises where the host would wait; the wait for drawn tokens is an event's."""
    submit, num_steps = GpuRunner.submit, 0

    def watched(runner: GpuRunner, plan: StepPlan) -> PendingStep:
        nonlocal num_steps
        num_steps += bool(plan.scheduled)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return submit(runner, plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(GpuRunner, "submit", watched)
    sampled = SamplingParams(temperature=0.7, top_p=0.9, seed=1, max_tokens=24, ignore_eos=True)
    outcome = run_model(prompts(LENGTHS), [GREEDY, sampled] * 4)
    assert num_steps == len(outcome.timings) > 24
