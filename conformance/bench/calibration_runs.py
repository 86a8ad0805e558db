"""Small workloads that hold steps of every kind and size, for cost models to be fitted to.

What people send packs into few kinds of steps: a batch handed in at once prefills in full steps
only, and decodes at two or three sizes for long. Here each run sweeps one thing: the length of a
lone prompt, how many prompts a step prefills, how many sequences decode, how much they see, how
much of that they share, and prompts of every length that come while others decode.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from pagetwin.conformance.bench.workloads import BenchRequest, Workload, shrunk
from pagetwin.engine.config import EngineConfig
from pagetwin.simulator.costs.graph_sizes import graph_sizes

LABEL = "probe"
"""What the labels of these runs begin with; nobody judges a simulator by them."""
_SEED = 30


class ProbeRun(NamedTuple):
    """A workload, and when its requests arrive: at those seconds, or all at once."""

    label: str
    workload: Workload
    arrivals_s: tuple[float, ...] | None = None

    def shrunk(self, factor: int) -> "ProbeRun":
        """Fewer and shorter requests, at the same times (`workloads.shrunk`)."""
        workload = shrunk(self.workload, factor)
        times = self.arrivals_s
        return self._replace(
            workload=workload, arrivals_s=None if times is None else times[: len(workload)]
        )


def probe_runs(vocabulary: int, *, max_num_seqs: int, longest: int) -> list[ProbeRun]:
    """The runs, for an engine of that size: about 20 s for 8 billion parameters on one H100.

    No request has more than `longest` tokens, prompt and output together.
    """
    draw = _Prompts(vocabulary, longest)
    return [
        *_lone_prompts(draw),
        *_batches_of_prompts(draw, max_num_seqs),
        *_decoding(draw, max_num_seqs),
        *_seeing(draw, max_num_seqs),
        *_sharing(draw, max_num_seqs),
        *_mixing(draw, max_num_seqs),
    ]


def longest_request(config: EngineConfig) -> int:
    """Tokens of the longest sequence that an engine holds."""
    pool = (config.cache.num_blocks - 1) * config.cache.block_size
    return min(config.scheduler.max_model_len, pool)


class _Prompts:
    """Draws prompts that leave room for their outputs."""

    def __init__(self, vocabulary: int, longest: int) -> None:
        self._rng = np.random.default_rng(_SEED)
        self._vocabulary = vocabulary
        self._longest = longest

    def tokens(self, count: int) -> list[int]:
        drawn: list[int] = self._rng.integers(0, self._vocabulary, count).tolist()
        return drawn

    def request(self, num_prompt: int, num_output: int, prefix: Sequence[int] = ()) -> BenchRequest:
        num_output = min(num_output, self._longest // 2)
        prompt = [*prefix, *self.tokens(num_prompt)][: self._longest - num_output]
        return BenchRequest(prompt, num_output)


def _lone_prompts(draw: _Prompts) -> Iterator[ProbeRun]:
    """One prompt in an idle engine, from 2 tokens to a step's budget, each length twice."""
    lengths = [2, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768]
    lengths += [1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16380]
    for again, length in product(range(2), lengths):
        yield ProbeRun(f"{LABEL}/prompt-{length}/{again}", [draw.request(length, 3)])


def _batches_of_prompts(draw: _Prompts, max_num_seqs: int) -> Iterator[ProbeRun]:
    """As many tokens in few long prompts as in many short ones."""
    for total, length in product((512, 2048, 8192, 16384), (16, 64, 256, 1024)):
        count = total // length
        if 2 <= count <= max_num_seqs:
            yield ProbeRun(
                f"{LABEL}/prompts-{count}x{length}/0",
                [draw.request(length, 2) for _ in range(count)],
            )


def _decoding(draw: _Prompts, max_num_seqs: int) -> Iterator[ProbeRun]:
    """Batches that see next to nothing, of every size that a CUDA graph is captured for, since
    the time of a product with weights rises and falls with the kernel that is chosen for it."""
    for size in sorted({*graph_sizes(max_num_seqs), 3, 6, 12} & set(range(1, max_num_seqs + 1))):
        workload = [draw.request(2, 10) for _ in range(size)]
        yield ProbeRun(f"{LABEL}/decode-{size}/0", workload)


def _seeing(draw: _Prompts, max_num_seqs: int) -> Iterator[ProbeRun]:
    """Batches that see much, evenly and unevenly."""
    shapes = [(1, 512), (1, 2048), (1, 8192), (1, 16000), (2, 4096), (4, 8192), (8, 1024)]
    shapes += [(16, 2048), (32, 512), (64, 512), (128, 384), (256, 256)]
    for count, length in shapes:
        if count <= max_num_seqs:
            workload = [draw.request(length, 12) for _ in range(count)]
            yield ProbeRun(f"{LABEL}/context-{count}x{length}/0", workload)
    lengths = np.geomspace(16, 4096, min(48, max_num_seqs)).astype(int).tolist()
    uneven = [draw.request(length, 12) for length in lengths]
    yield ProbeRun(f"{LABEL}/context-uneven/0", uneven)


def _sharing(draw: _Prompts, max_num_seqs: int) -> Iterator[ProbeRun]:
    """Batches whose prompts begin alike; the first one leaves its prefix to the others."""
    for count, length in ((32, 2048), (128, 1024), (256, 512)):
        prefix = draw.tokens(length)
        size = min(count, max_num_seqs)
        workload = [draw.request(16, 16, prefix) for _ in range(size)]
        yield ProbeRun(f"{LABEL}/shared-{count}x{length}/0", workload, (0.0, *[0.25] * (size - 1)))


def _mixing(draw: _Prompts, max_num_seqs: int) -> Iterator[ProbeRun]:
    """Prompts that come one by one, some of them two at a time, while others decode."""
    lengths = ((8, 1), (32, 1), (64, 2), (128, 1), (256, 2), (512, 1), (1024, 1), (2048, 1))
    # Small batches decode faster, and must last as long.
    for size, num_output in ((4, 400), (24, 300), (96, 200), (192, 160), (384, 120)):
        if size > max_num_seqs - 2:
            continue
        workload = [draw.request(64, num_output) for _ in range(size)]
        times = [0.0] * size
        for number, (length, count) in enumerate(lengths):
            workload += [draw.request(length, 4) for _ in range(count)]
            times += [0.1 + 0.05 * number] * count
        yield ProbeRun(f"{LABEL}/mixed-{size}/0", workload, tuple(times))
