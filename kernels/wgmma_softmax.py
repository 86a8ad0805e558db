"""attention_tiles in Gluon, for four warps of wgmma: 64 rows, tiles of 128 keys.

The same arithmetic, to the bit, in the layouts that wgmma leaves its results in.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

TILE = gl.constexpr(128)


@gluon.constexpr_function
def product_layout(columns):
    """[64, columns] as four warps of wgmma leave it in registers."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def lane_layout():
    """[64, 16] as lane_sums leaves it."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [8, 0], [0, 8]],
        lane_bases=[[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, 16],
    )


@gluon.constexpr_function
def register_order(columns):
    """A product in shared memory as it lies in registers: 16 bytes of each thread in turn."""
    bases = [[0, 1], [8, 0], [0, 2], [0, 4], [1, 0], [2, 0], [4, 0], [16, 0], [32, 0]]
    while 8 * 2 ** (len(bases) - 9) < columns:
        bases.append([0, 8 * 2 ** (len(bases) - 9)])
    return gl.SharedLinearLayout(bases)


@gluon.jit
def add_halves(x, N: gl.constexpr):
    return gl.sum(gl.reshape(x, [64, 2, N // 2]), 1)


@gluon.jit
def lane_sums(x):
    """As attention_tiles.add_halves, to the sums that a row keeps: all within a thread."""
    x = add_halves(add_halves(add_halves(x, 128), 64), 32)
    return gl.convert_layout(x, lane_layout(), assert_trivial=True)


@gluon.jit
def total_sum(sums, ROW: gl.constexpr):
    """As attention_tiles.total_sum."""
    sums = add_halves(add_halves(add_halves(sums, 16), 8), 4)
    return gl.convert_layout(gl.sum(sums, 1), ROW)


@gluon.jit
def softmax_step(products, scale, maximum, sums):
    """As attention_tiles.softmax_step."""
    new_maximum = gl.maximum(maximum, gl.max(products, 1) * scale)
    finite = gl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = gl.exp2(gl.fma(products, scale, -finite[:, None]))
    rescale = gl.exp2(maximum - finite)
    across = gl.convert_layout(rescale, gl.SliceLayout(1, lane_layout()), assert_trivial=True)
    sums = gl.fma(sums, across[:, None], lane_sums(weights))
    return weights, rescale, new_maximum, sums


@gluon.jit
def fold_split(maximum, total, weighted, split_maximum, split_total, split_weighted):
    """As attention_tiles.fold_split."""
    ROW: gl.constexpr = gl.SliceLayout(1, split_weighted.type.layout)
    new_maximum = gl.maximum(maximum, split_maximum)
    finite = gl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    old = gl.exp2(maximum - finite)
    new = gl.exp2(split_maximum - finite)
    total = gl.fma(total, old, split_total * new)
    old = gl.convert_layout(old, ROW, assert_trivial=True)
    new = gl.convert_layout(new, ROW, assert_trivial=True)
    weighted = gl.fma(weighted, old[:, None], split_weighted * new[:, None])
    return new_maximum, total, weighted


@gluon.jit
def packed(weights, DTYPE: gl.constexpr):
    """[64, 128] float32 to int32 [64, 64], two rounded weights each: what a loop carries."""
    even, odd = gl.split(gl.reshape(weights, [64, 64, 2]))
    KIND: gl.constexpr = "f16x2" if DTYPE.is_fp16() else "bf16x2"
    return gl.inline_asm_elementwise(
        "cvt.rn." + KIND + ".f32 $0, $2, $1;", "=r,r,r", [even, odd], gl.int32, True, 1
    )


@gluon.jit
def unpacked(pairs, DTYPE: gl.constexpr, LAYOUT: gl.constexpr):
    even = pairs.to(gl.uint16).to(DTYPE, bitcast=True)
    odd = (pairs >> 16).to(gl.uint16).to(DTYPE, bitcast=True)
    return gl.convert_layout(gl.reshape(gl.join(even, odd), [64, 128]), LAYOUT, assert_trivial=True)


@gluon.jit
def masked(products, tile, position, sliding_window, HAS_WINDOW: gl.constexpr):
    """-inf where a row does not see a key. `position` [64] of the rows."""
    # In eighths, so that a thread's columns are constants, not registers.
    cube = gl.reshape(products, [64, TILE // 8, 8])
    LAYOUT: gl.constexpr = cube.type.layout
    eighth = gl.arange(0, TILE // 8, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT))) * 8
    rest = gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))
    last = gl.convert_layout(position - tile * TILE, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    last = gl.expand_dims(gl.expand_dims(last, 1), 2) - gl.expand_dims(gl.expand_dims(rest, 0), 1)
    eighth = gl.expand_dims(gl.expand_dims(eighth, 0), 2)
    visible = eighth <= last
    if HAS_WINDOW:
        visible = visible & (eighth > last - sliding_window)
    cube = gl.where(visible, cube, float("-inf"))
    return gl.convert_layout(
        gl.reshape(cube, [64, TILE]), products.type.layout, assert_trivial=True
    )
