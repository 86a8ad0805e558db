"""What `pagetwin bench kernels` found, as plain data."""

import statistics
from collections.abc import Sequence
from typing import Self

import msgspec

from pagetwin.conformance.environment import Measured

SCHEMA = "pagetwin.bench.kernels/1"


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """What this device reaches, measured in the same run."""

    copy_gb_per_s: float
    """Of a large copy, read and write together."""
    matmul_tflops: float
    """Of a bfloat16 product of 8192 x 8192 matrices."""


class KernelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel on one shape."""

    key: str
    """device/kernel/rows/shape."""
    kernel: str
    rows: int
    shape: str
    us: float
    """Replayed from a CUDA graph, as in a model: the median of the samples."""
    samples_us: tuple[float, ...]
    num_bytes: int
    """Read and written, each once."""
    flops: int
    gb_per_s: float
    tflops: float
    compared_with: str | None = None
    """The case of baselines/peers.json that is the same work."""
    alone_us: float | None = None
    """Launched alone, as that case was: the median of the samples."""
    alone_samples_us: tuple[float, ...] = ()
    error: str | None = None
    """Why there is no time; the numbers are 0 then."""

    @classmethod
    def of(
        cls,
        samples_s: Sequence[float],
        num_bytes: int,
        flops: int,
        *,
        device: str,
        kernel: str,
        rows: int,
        shape: str,
        compared_with: str | None = None,
        alone_s: Sequence[float] | None = None,
    ) -> Self:
        seconds = statistics.median(samples_s)
        return cls(
            key=f"{device}/{kernel}/{rows}/{shape}",
            kernel=kernel,
            rows=rows,
            shape=shape,
            us=seconds * 1e6,
            samples_us=_microseconds(samples_s),
            num_bytes=num_bytes,
            flops=flops,
            gb_per_s=num_bytes / seconds / 1e9,
            tflops=flops / seconds / 1e12,
            compared_with=compared_with,
            alone_us=statistics.median(alone_s) * 1e6 if alone_s else None,
            alone_samples_us=_microseconds(alone_s or ()),
        )

    @classmethod
    def failed(cls, error: Exception, *, device: str, kernel: str, rows: int, shape: str) -> Self:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return cls(
            key=f"{device}/{kernel}/{rows}/{shape}",
            kernel=kernel,
            rows=rows,
            shape=shape,
            us=0.0,
            samples_us=(),
            num_bytes=0,
            flops=0,
            gb_per_s=0.0,
            tflops=0.0,
            error=message,
        )


def _microseconds(samples_s: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(sample * 1e6, 3) for sample in samples_s)


class KernelReport(Measured, frozen=True, kw_only=True):
    """One invocation: one machine, one commit."""

    schema: str = SCHEMA
    device: str
    seed: int
    config: dict[str, str]
    """What holds for every row: data type, block size, how it was timed."""
    ceilings: Ceilings
    rows: tuple[KernelRow, ...]
