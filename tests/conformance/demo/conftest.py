"""A whole demo workload on the fingerprint executor: the same decisions, without a model."""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest

from pagetwin.conformance.demo.drive import drive
from pagetwin.conformance.demo.workload import (
    CACHE,
    SCHEDULER,
    DemoRequest,
    draw_workload,
    trace_window,
)
from pagetwin.engine.config import EngineConfig
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.trace import HistoryWriter, Record
from pagetwin.simulator.workloads.trace_files import read_trace, synthetic_trace_path

VOCABULARY = 49152


@dataclass(frozen=True)
class MadeRun:
    """A run without a model."""

    workload: Sequence[DemoRequest]
    records: Sequence[Record]
    outputs: Mapping[str, RequestOutput]
    progress: Sequence[int]


Draw = Callable[[int, int], tuple[DemoRequest, ...]]
MakeRun = Callable[[int, int], MadeRun]


def words_as_tokens(text: str) -> tuple[int, ...]:
    """A token a word or sign, about what a real tokenizer makes of plain English."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return tuple(zlib.crc32(word.encode()) % VOCABULARY for word in words)


def write_prompt(instruction: str, passage: str, num_tokens: int) -> tuple[int, ...]:
    head, body = words_as_tokens(instruction), words_as_tokens(passage)
    return head + body[: max(8, num_tokens - len(head) - 1)] + (0,)


@pytest.fixture(scope="session")
def draw() -> Draw:
    """(number of requests, seed) to a workload from the built-in trace."""
    entries = list(read_trace(synthetic_trace_path()))

    def draw_from_trace(num_requests: int, seed: int) -> tuple[DemoRequest, ...]:
        window = trace_window(entries, num_requests=num_requests, seed=seed)
        return draw_workload(window, write_prompt, seed=seed)

    return draw_from_trace


@pytest.fixture(scope="session")
def make_run(draw: Draw) -> MakeRun:
    """(number of requests, seed) to a run of the engine over that workload."""

    def run(num_requests: int, seed: int) -> MadeRun:
        history = HistoryWriter(keep=True, with_block_tables=True)
        engine = LLMEngine(
            EngineConfig(cache=CACHE, scheduler=SCHEDULER, debug_invariants=True),
            FingerprintExecutor(CACHE, vocab_size=VOCABULARY),
            vocab_size=VOCABULARY,
            history=history,
        )
        workload = draw(num_requests, seed)
        progress: list[int] = []
        outputs = drive(engine, workload, progress.append)
        return MadeRun(workload, history.records, outputs, progress)

    return run
