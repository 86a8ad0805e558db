"""Calibration runs: steps of many kinds, in a history that says which runs they are of."""

from collections.abc import Sequence

import numpy as np
import pytest

from pagetwin.conformance.bench.calibration_runs import LABEL, longest_request, probe_runs
from pagetwin.conformance.bench.passes import serve
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.trace import HistoryWriter
from pagetwin.simulator.recordings.runs import RecordedRun, read_runs
from pagetwin.simulator.recordings.steps import StepTable

CONFIG = EngineConfig(
    cache=CacheConfig(num_blocks=100, block_size=8),
    scheduler=SchedulerConfig(max_model_len=256, max_num_seqs=8, max_num_batched_tokens=64),
)


@pytest.mark.parametrize(("max_num_seqs", "longest"), [(512, 16384), (64, 2048), (1, 8)])
def test_every_run_fits_the_engine_that_it_is_for(max_num_seqs: int, longest: int) -> None:
    runs = probe_runs(100, max_num_seqs=max_num_seqs, longest=longest)
    assert len({run.label for run in runs}) == len(runs)
    for run in runs:
        assert run.label.startswith(f"{LABEL}/")
        assert run.arrivals_s is None or len(run.arrivals_s) == len(run.workload)
        assert len(run.workload) >= 1
        for request in run.workload:
            assert request.prompt_token_ids
            assert request.num_output_tokens >= 1
            assert len(request.prompt_token_ids) + request.num_output_tokens <= longest


def test_runs_are_drawn_the_same_each_time() -> None:
    first, second = (probe_runs(50, max_num_seqs=16, longest=512) for _ in range(2))
    assert first == second


def test_a_small_pool_bounds_the_longest_request() -> None:
    small = EngineConfig(cache=CacheConfig(num_blocks=5, block_size=8), scheduler=CONFIG.scheduler)
    assert longest_request(CONFIG) == 256
    assert longest_request(small) == 32


def test_recorded_they_hold_steps_of_every_kind() -> None:
    runs = recorded_runs()
    assert all(run.label.startswith(LABEL) for run in runs)
    steps = StepTable.joined(run.steps for run in runs)
    prefills, decodes = (steps.column(f"num_{kind}_sequences") for kind in ("prefill", "decode"))
    assert set(decodes.tolist()) >= {0, 1, 2, 3, 4, 6, 8}
    assert np.any((decodes > 2) & (prefills > 0)), "prompts join a batch that decodes"
    assert prefills.max() > 2
    lengths = set(steps.column("num_prefill_tokens")[prefills == 1].tolist())
    assert lengths >= {2, 8, 16, 32, 64}
    shared = [run.prefix_hit_share for run in runs if "shared" in run.label]
    assert len(shared) == 3
    assert min(shared) > 0.5


class Clock:
    """Goes on by a millisecond with each look."""

    now = 100.0

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def recorded_runs() -> Sequence[RecordedRun]:
    clock = Clock()
    history = HistoryWriter(keep=True)
    executor = FingerprintExecutor(CONFIG.cache, vocab_size=50)
    engine = LLMEngine(CONFIG, executor, vocab_size=50, history=history)
    for run in probe_runs(50, max_num_seqs=8, longest=longest_request(CONFIG)):
        engine.reset_prefix_cache()
        serve(engine, run.workload, run.arrivals_s, run.label, clock=clock, sleep=clock.sleep)
    return list(read_runs(history.records))
