"""Whole decode steps as CUDA graphs: which sizes there are, and which step runs as which."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

Variant = Literal["greedy", "random"]
"""What a step ends with: the largest logits' tokens, or drawn ones. Where the host is to draw, it
is "greedy", which leaves the logits as they are, and its tokens count for nothing."""
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """The numbers of sequences that graphs are captured for, ascending, up to max_num_seqs.

    Padding costs little where it is a small share, so that large sizes may be far apart.
    """
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_num_seqs, 16)]
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)


@dataclass(frozen=True)
class Route:
    """How a step is run: by the graph of `size` sequences, or launch by launch for a `reason`."""

    size: int = 0
    reason: str = ""


@dataclass
class Dispatcher:
    """Chooses the graph of a step."""

    sizes: Sequence[int] = ()
    """Ascending; none where there are no graphs."""
    why_none: str = "graphs are off (enforce_eager)"
    """Why there are no graphs, if so."""

    def route(self, num_seqs: int, num_tokens: int, *, draws_once: bool) -> Route:
        """The smallest graph that holds a step of these sequences and tokens.

        `draws_once` tells whether every sequence draws a token, and none several.
        """
        reason = ""
        if not self.sizes:
            reason = self.why_none
        elif num_tokens > num_seqs:
            reason = "some sequence has more than one token"
        elif not draws_once:
            reason = "some sequence draws no token, or several"
        elif num_seqs > self.sizes[-1]:
            reason = f"more than {self.sizes[-1]} sequences"
        if reason:
            return Route(reason=reason)
        return Route(size=next(size for size in self.sizes if size >= num_seqs))


class CudaGraphs:
    """The captured graphs, in one pool of memory.

    The largest is captured first, so that the smaller ones find all the memory they need in the
    pool. Graphs that share a pool must not run side by side; here, one stream runs them all.
    """

    def __init__(self) -> None:
        self._graphs: dict[tuple[int, Variant], torch.cuda.CUDAGraph] = {}
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def capture(self, size: int, variant: Variant, run: Callable[[], object]) -> None:
        """Captures what `run` launches; it has run before, so that nothing is compiled now."""
        if self._stream is None:
            new_stream: Any = torch.cuda.Stream
            self._stream = new_stream()
        assert self._stream is not None
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Not torch.cuda.graph: it collects garbage each time, which takes longer than this.
            graph.capture_begin(pool=self._pool)
            try:
                run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._pool = graph.pool()
        self._graphs[size, variant] = graph

    def replay(self, size: int, variant: Variant) -> None:
        """Launches the graph on the current stream."""
        self._graphs[size, variant].replay()
