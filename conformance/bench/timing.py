"""How a kernel is timed: replayed from a CUDA graph, on inputs that are not in the cache."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from pagetwin.engine.errors import ConfigError

Launch = Callable[[], object]

COLD_BYTES = 256 * 2**20
"""The inputs of one round together: several times any GPU's L2 cache."""
MIN_LAUNCHES, MAX_LAUNCHES = 20, 256
ROUNDS = 15
SAMPLES = 50
"""Kept of a launch alone: evenly spaced quantiles."""
MIN_ROUND_S = 2e-3
"""A round is at least that long, so that the clock's resolution does not show."""


class Timer(Protocol):
    """Times launches that do the same work on inputs of their own."""

    def __call__(self, launches: Sequence[Launch]) -> list[float]:
        """Seconds of one launch, a sample from each round."""
        ...


def require_gpu() -> None:
    """Raises ConfigError without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "bench kernels needs a GPU, and torch finds no CUDA device; on a CPU kernels run "
            "only interpreted, which says nothing about speed"
        )


class Timers(NamedTuple):
    """The two ways to time. Peers were timed alone."""

    in_graph: Timer
    alone: Timer


def num_sets(num_bytes: int) -> int:
    """Sets of inputs of `num_bytes` each that make one round cold; at most MAX_LAUNCHES."""
    return max(1, min(MAX_LAUNCHES, -(-COLD_BYTES // max(1, num_bytes))))


def time_in_graph(launches: Sequence[Launch]) -> list[float]:
    """Timer on a GPU: a graph of all launches, one after the other, is replayed round by round.

    In a graph the host costs nothing, and a kernel starts as soon as the one before has ended:
    the time is that of a kernel in the middle of a model.
    """
    repeated = [launches[i % len(launches)] for i in range(max(MIN_LAUNCHES, len(launches)))]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for launch in launches:  # Compiles and allocates, which a capture must not.
            launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for launch in repeated:
            launch()
    replays = 1 + int(MIN_ROUND_S / max(_round_s(graph, 1), 1e-6))
    return [_round_s(graph, replays) / replays / len(repeated) for _ in range(ROUNDS)]


def time_alone(launches: Sequence[Launch]) -> list[float]:
    """Timer on a GPU: one launch by the host at a time, between two events, the L2 cache flushed.

    That is how kernels are usually published. The start of a kernel counts, and the host's time
    where it is longer than the flush.
    """
    import triton.testing

    [launch] = launches
    milliseconds = triton.testing.do_bench(launch, warmup=50, rep=200, return_mode="all")
    step = max(1, len(milliseconds) // SAMPLES)
    return [ms / 1e3 for ms in sorted(milliseconds)[step // 2 :: step]]


def _round_s(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
