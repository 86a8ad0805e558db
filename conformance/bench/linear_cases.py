"""The matrix products of a layer, with what is fused into them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pagetwin.conformance.bench.case import Case, Source
from pagetwin.conformance.bench.shapes import ModelShape, Shapes
from pagetwin.conformance.bench.timing import Launch
from pagetwin.kernels.linear import linear, linear_add, norm_gated_linear, norm_linear

EPS = 1e-6


def linear_cases(shapes: Shapes) -> Iterator[Case]:
    for model in shapes.models:
        for rows in shapes.rows:
            qkv = model.q_size + 2 * model.kv_size
            yield _norm_case("norm_linear", _norm_linear, rows, model.hidden, qkv, qkv)
            yield _linear_add(rows, model.q_size, model.hidden)
            yield _norm_case(
                "norm_gated_linear",
                norm_gated_linear,
                rows,
                model.hidden,
                2 * model.inner,
                model.inner,
            )
            yield _linear_add(rows, model.inner, model.hidden)
        yield from (_logits(rows, model) for rows in shapes.samples)


def _norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor) -> Tensor:
    return norm_linear(x, norm_weight, eps, weight)


def _norm_case(
    kernel: str,
    launch: Callable[[Tensor, Tensor, float, Tensor], Tensor],
    rows: int,
    size: int,
    num_columns: int,
    num_out: int,
) -> Case:
    """A product of normalised rows; `num_columns` of the matrix make `num_out` results."""

    def make(source: Source) -> Launch:
        x, norm_weight = source.normal(rows, size), source.normal(size)
        weight = source.normal(num_columns, size, scale=size**-0.5)
        return lambda: launch(x, norm_weight, EPS, weight)

    return Case(
        kernel=kernel,
        shape=f"{size} x {num_columns}",
        rows=rows,
        num_bytes=2 * (rows * size + size + num_columns * size + rows * num_out),
        flops=2 * rows * size * num_columns,
        make=make,
    )


def _linear_add(rows: int, size: int, num_columns: int) -> Case:
    def make(source: Source) -> Launch:
        x, residual = source.normal(rows, size), source.normal(rows, num_columns)
        weight = source.normal(num_columns, size, scale=size**-0.5)
        return lambda: linear_add(x, weight, residual)

    return Case(
        kernel="linear_add",
        shape=f"{size} x {num_columns}",
        rows=rows,
        num_bytes=2 * (rows * size + num_columns * size + 2 * rows * num_columns),
        flops=2 * rows * size * num_columns,
        make=make,
    )


def _logits(rows: int, model: ModelShape) -> Case:
    def make(source: Source) -> Launch:
        x = source.normal(rows, model.hidden)
        weight = source.normal(model.vocab, model.hidden, scale=model.hidden**-0.5)
        out = torch.empty(rows, model.vocab, dtype=torch.float32, device=source.device)
        return lambda: linear(x, weight, out=out)

    return Case(
        kernel="linear",
        shape=f"{model.hidden} x {model.vocab}, to float32",
        rows=rows,
        num_bytes=2 * (rows + model.vocab) * model.hidden + 4 * rows * model.vocab,
        flops=2 * rows * model.hidden * model.vocab,
        make=make,
    )
