"""Times our kernels on fixed shapes, beside what the device reaches on the plainest work."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from pagetwin.conformance.bench.attention_cases import attention_cases
from pagetwin.conformance.bench.case import Case, Source
from pagetwin.conformance.bench.kernel_result import Ceilings, KernelReport, KernelRow
from pagetwin.conformance.bench.layer_cases import layer_cases
from pagetwin.conformance.bench.linear_cases import linear_cases
from pagetwin.conformance.bench.sampling_cases import sampling_cases
from pagetwin.conformance.bench.shapes import Shapes
from pagetwin.conformance.bench.timing import Timer, Timers, num_sets
from pagetwin.conformance.environment import gpu, provenance
from pagetwin.engine.errors import ConfigError
from pagetwin.kernels.linear import no_split_k

COPIED_ELEMENTS = 2**30
MATRIX_SIZE = 8192


class Progress(Protocol):
    """Told what is going on."""

    def begin(self, phase: str, total: int | None) -> None: ...

    def advance_to(self, done: int) -> None: ...


def all_cases(shapes: Shapes) -> list[Case]:
    """In the order in which they are shown."""
    return [
        *attention_cases(shapes.attention),
        *linear_cases(shapes),
        *layer_cases(shapes),
        *sampling_cases(shapes),
    ]


def chosen(cases: Iterable[Case], only: Sequence[str]) -> list[Case]:
    """The cases of those kernels; all, if none is named. Raises ConfigError on an unknown name."""
    cases = list(cases)
    known = list(dict.fromkeys(case.kernel for case in cases))
    for name in only:
        if name not in known:
            raise ConfigError(f"kernel {name!r} is unknown; use some of {', '.join(known)}")
    return [case for case in cases if not only or case.kernel in only]


@torch.inference_mode()
def measure_kernels(
    cases: Sequence[Case], timers: Timers, device: torch.device, progress: Progress
) -> KernelReport:
    """Times every case; one that fails becomes a row that says why."""
    progress.begin("ceilings", None)
    ceilings = Ceilings(
        copy_gb_per_s=copy_gb_per_s(timers.in_graph, device, COPIED_ELEMENTS),
        matmul_tflops=matmul_tflops(timers.in_graph, device, MATRIX_SIZE),
    )
    progress.begin("kernels", len(cases))
    rows, name = [], gpu().get("gpu", "cpu")
    with no_split_k():  # As every step of the engine runs.
        for index, case in enumerate(cases):
            rows.append(_measured(case, timers, device, name))
            progress.advance_to(index + 1)
    return KernelReport(
        **provenance(),
        device=name,
        seed=0,
        config={
            "dtype": "bfloat16",
            "timing": "CUDA graph replay, inputs not in the L2 cache",
            "cuBLAS": "does not split K",
        },
        ceilings=ceilings,
        rows=tuple(rows),
    )


def copy_gb_per_s(timer: Timer, device: torch.device, num_elements: int) -> float:
    """Of a copy of 16-bit numbers by a kernel, read and write together.

    `copy_` would be no kernel: in a CUDA graph it is the driver's own copy, a third slower.
    """
    x = torch.zeros(num_elements, dtype=torch.bfloat16, device=device)
    y = torch.empty_like(x)
    return 2 * 2 * num_elements / statistics.median(timer([lambda: torch.neg(x, out=y)])) / 1e9


def matmul_tflops(timer: Timer, device: torch.device, size: int) -> float:
    """Of a product of square matrices; normal numbers, since zeros draw less power."""
    source = Source(device)
    a, b = source.normal(size, size), source.normal(size, size)
    return 2 * size**3 / statistics.median(timer([lambda: a @ b])) / 1e12


def _measured(case: Case, timers: Timers, device: torch.device, name: str) -> KernelRow:
    source, alone_s = Source(device), None
    try:
        launches = [case.make(source) for _ in range(num_sets(case.num_bytes))]
        samples_s = timers.in_graph(launches)
        if case.compared_with is not None:
            alone_s = timers.alone(launches[:1])
    except Exception as error:
        return KernelRow.failed(
            error, device=name, kernel=case.kernel, rows=case.rows, shape=case.shape
        )
    return KernelRow.of(
        samples_s,
        case.num_bytes,
        case.flops,
        device=name,
        kernel=case.kernel,
        rows=case.rows,
        shape=case.shape,
        compared_with=case.compared_with,
        alone_s=alone_s,
    )
