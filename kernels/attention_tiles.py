"""How attention is cut and summed: what decode and prefill share, so that they agree to the bit.

A sequence's keys are cut at absolute positions into splits of SPLIT keys, a split into tiles of
tile_size() keys. Within a split, tiles are added in ascending order by the online softmax (Milakov
and Gimelshein 2018); splits are folded in ascending order (flash decoding; Dao et al. 2023). A
row's result then depends on its keys alone, if three more things hold, and the functions here see
to them:

- A key that a row does not see has the score -inf. A tile or split without visible keys changes
  nothing, exactly, and may be skipped; tiles are never moved or shortened.
- Products and sums that a compiler could contract are written as fma, and never otherwise.
- Weights are added in an order that no layout can change. A reduction over an axis adds in an
  order that depends on how the axis lies over registers, lanes and warps, unless the axis has two
  elements. So add_halves halves the axis until sum_lanes(tile) columns are left, a row keeps one
  sum for each, and total_sum halves on at the end of the split. (A matrix product adds in the
  order of its k, in every instruction that Triton may choose; measured.)

Scores are in units of log2: `scale` is log2_scale(scale), and exp2 is exp.
"""

import math

import triton
import triton.language as tl

SPLIT = 1024
"""Keys of a split, a multiple of every tile size."""


def tile_size(head_size: int, itemsize: int) -> int:
    """Keys of a tile, a power of two: 32 KiB of keys, and what fp32 can hold in registers.

    (Products of float32 in full precision are made by the ordinary units from registers.)
    """
    columns = int(triton.next_power_of_2(max(head_size, 16)))
    if itemsize <= 2:
        return 128 if columns <= 128 else 64
    return max(16, min(64, 2048 // columns))


def log2_scale(scale: float) -> float:
    """The factor from products of q and k to scores in units of log2."""
    return scale * math.log2(math.e)


@triton.jit
def soft_capped(products, scale, soft_cap):
    """soft_cap * tanh(products * scale / soft_cap) in units of log2; apply scale 1 afterwards.

    tanh(x) = 1 - 2 / (exp(2x) + 1): one exponential, no inf / inf. Here `scale` is in units of
    log2 and soft_cap is not.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    grown = tl.exp2(products * (2.0 * scale / soft_cap)) + 1.0
    return tl.fma(1.0 / grown, -2.0, 1.0) * (soft_cap * LOG2E)


@triton.jit
def with_alibi(products, scale, slopes, distance):
    """Adds slope * (key - query) in units of log2; apply scale 1 afterwards.

    products [M, N], slopes float32 [M] (per unit of log2), distance int32 [M, N], not positive
    where it matters.
    """
    return tl.fma(products, scale, slopes[:, None] * distance.to(tl.float32))


@triton.constexpr_function
def sum_lanes(tile):
    """Sums of weights that a row keeps: of the keys of a tile that are equal modulo this number.

    In the layout of a matrix product such keys lie in one thread, if at most two warps share a row.
    """
    return min(tile, 16)


@triton.jit
def add_halves(x, M: tl.constexpr, N: tl.constexpr, LEFT: tl.constexpr):
    """Sums x [M, N] to [M, LEFT]: column j and column j + N // 2 first, and so on."""
    for halvings in tl.static_range((N // LEFT).bit_length() - 1):
        x = tl.sum(tl.reshape(x, [M, 2, N >> (halvings + 1)]), 1)
    return x


@triton.jit
def total_sum(sums, M: tl.constexpr, LANES: tl.constexpr):
    """[M, LANES] to [M], at the end of a split."""
    return tl.sum(add_halves(sums, M, LANES, 2), 1)


@triton.jit
def softmax_step(products, scale, maximum, sums, M: tl.constexpr, TILE: tl.constexpr):
    """Adds a tile of products of q and k [M, TILE], -inf where invisible, to a split's state.

    The state is maximum [M] in units of log2, at first -inf, and sums [M, sum_lanes(TILE)], at
    first 0. Returns (weights, rescale, maximum, sums); the caller goes on with
    weighted = dot(weights.to(v.dtype), v, weighted * rescale[:, None]).
    """
    new_maximum = tl.maximum(maximum, tl.max(products, 1) * scale)
    # Where nothing has been visible yet, -inf - -inf would be NaN.
    finite = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = tl.exp2(tl.fma(products, scale, -finite[:, None]))
    rescale = tl.exp2(maximum - finite)
    tile_sums = add_halves(weights, M, TILE, sum_lanes(TILE))
    sums = tl.fma(sums, rescale[:, None], tile_sums)
    return weights, rescale, new_maximum, sums


@triton.jit
def fold_split(maximum, total, weighted, split_maximum, split_total, split_weighted):
    """Adds a split to the splits before it: maxima and totals [M], weighted sums [M, N].

    Starts from (-inf, 0, 0). A sink is a last split of maximum sink * log2(e), total 1, weighted 0.
    Of one split alone it returns that split, exactly.
    """
    new_maximum = tl.maximum(maximum, split_maximum)
    finite = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    old = tl.exp2(maximum - finite)
    new = tl.exp2(split_maximum - finite)
    total = tl.fma(total, old, split_total * new)
    weighted = tl.fma(weighted, old[:, None], split_weighted * new[:, None])
    return new_maximum, total, weighted


@triton.jit
def normalised(weighted, total):
    """The attention of each row, and 0 of a row that sees nothing."""
    return weighted / tl.where(total == 0.0, 1.0, total)[:, None]
