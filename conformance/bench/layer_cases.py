"""The kernels between matrix products and attention."""

from collections.abc import Iterator

import torch

from pagetwin.conformance.bench.case import Case, Source
from pagetwin.conformance.bench.shapes import ModelShape, Shapes
from pagetwin.conformance.bench.timing import Launch
from pagetwin.kernels.activation import silu_and_mul
from pagetwin.kernels.block_copy import copy_blocks
from pagetwin.kernels.norm import add_rms_norm, rms_norm
from pagetwin.kernels.rotary import qk_norm_rope_write

EPS = 1e-6
BLOCK_SIZE = 16


def layer_cases(shapes: Shapes) -> Iterator[Case]:
    for model in shapes.models:
        for rows in shapes.rows:
            yield _rms_norm(rows, model.hidden)
            yield _add_rms_norm(rows, model.hidden)
            yield _qk_norm_rope_write(rows, model)
            yield _silu_and_mul(rows, model.inner)
        yield _copy_blocks(16, model)


def _rms_norm(rows: int, hidden: int) -> Case:
    def make(source: Source) -> Launch:
        x, weight = source.normal(rows, hidden), source.normal(hidden)
        return lambda: rms_norm(x, weight, EPS)

    return Case(
        kernel="rms_norm",
        shape=str(hidden),
        rows=rows,
        num_bytes=2 * (2 * rows * hidden + hidden),
        flops=4 * rows * hidden,
        make=make,
    )


def _add_rms_norm(rows: int, hidden: int) -> Case:
    def make(source: Source) -> Launch:
        x, residual = source.normal(rows, hidden), source.normal(rows, hidden)
        weight = source.normal(hidden)
        return lambda: add_rms_norm(x, residual, weight, EPS)

    return Case(
        kernel="add_rms_norm",
        shape=str(hidden),
        rows=rows,
        num_bytes=2 * (4 * rows * hidden + hidden),
        flops=5 * rows * hidden,
        make=make,
    )


def _qk_norm_rope_write(rows: int, model: ModelShape) -> Case:
    width = model.q_size + 2 * model.kv_size

    def make(source: Source) -> Launch:
        qkv = source.normal(rows, width)
        q_weight = source.normal(model.head_size) if model.qk_norm else None
        k_weight = source.normal(model.head_size) if model.qk_norm else None
        angles = source.normal(rows, model.head_size, dtype=torch.float32)
        num_blocks = 1 + -(-rows // BLOCK_SIZE)
        cache_shape = (2, num_blocks, BLOCK_SIZE, model.num_kv_heads, model.head_size)
        cache = source.normal(*cache_shape)
        positions, slots = source.permutation(rows), BLOCK_SIZE + source.permutation(rows)
        return lambda: qk_norm_rope_write(
            qkv, q_weight, k_weight, EPS, angles, positions, cache, slots
        )

    return Case(
        kernel="qk_norm_rope_write",
        shape=f"{model.num_heads} + 2 x {model.num_kv_heads} heads" + ", norm" * model.qk_norm,
        rows=rows,
        # Queries in and out; keys and values in, and out to the cache; angles; two integers.
        num_bytes=rows * (2 * 2 * width + 4 * model.head_size + 2 * 8),
        flops=rows * (6 + 5 * model.qk_norm) * (model.q_size + model.kv_size),
        make=make,
    )


def _silu_and_mul(rows: int, inner: int) -> Case:
    def make(source: Source) -> Launch:
        gate_up = source.normal(rows, 2 * inner)
        return lambda: silu_and_mul(gate_up)

    return Case(
        kernel="silu_and_mul",
        shape=str(inner),
        rows=rows,
        num_bytes=2 * 3 * rows * inner,
        flops=5 * rows * inner,
        make=make,
    )


def _copy_blocks(num_pairs: int, model: ModelShape) -> Case:
    planes, elements = 2 * model.num_layers, BLOCK_SIZE * model.kv_size

    def make(source: Source) -> Launch:
        pool = source.normal(planes, 2 * num_pairs, elements)
        sources, destinations = source.permutation(2 * num_pairs).chunk(2)
        return lambda: copy_blocks(pool, sources, destinations)

    return Case(
        kernel="copy_blocks",
        shape=f"blocks of {BLOCK_SIZE} tokens, {model.num_layers} layers",
        rows=num_pairs,
        num_bytes=2 * 2 * planes * num_pairs * elements,
        flops=0,
        make=make,
    )
