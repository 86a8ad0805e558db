"""Products with the weights of gates and ups, and silu(gate) * up of them, for Hopper, in Gluon.

A program is parts that run side by side: a loading warp, which fetches pieces of rows and weights
through TMA into a ring, and for each 64 rows of a tile a group of four warps, which multiplies
them (wgmma). A tile has some gates and their ups side by side, so that they meet in registers and
go to memory as one. Programs take tile after tile: while one group computes its gates, the tensor
cores serve the other, and the loading warp is in the next tile.

The arithmetic is that of linear_tiles, to the bit.
"""

import math
from typing import NamedTuple

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pagetwin.kernels.device import num_multiprocessors
from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.linear_hopper import silu
from pagetwin.kernels.pdl import start_next, wait_for_previous

ROWS = gl.constexpr(64)
"""Rows of a group."""
DEPTH = gl.constexpr(64)
"""Values of a row in a piece: the 128 bytes over which it is swizzled."""
BAND = gl.constexpr(16)
"""Tiles below each other that are computed together, so that the L2 cache has their operands."""


def side(columns: int) -> gl.NVMMASharedLayout:
    """[any, columns] of 16 bits for wgmma and TMA, 64 columns after 64 columns."""
    return gl.NVMMASharedLayout(
        swizzle_byte_width=min(128, columns * 2), element_bitwidth=16, rank=2
    )


_SIDE: gl.constexpr = gl.constexpr(side(64))


@gluon.constexpr_function
def _product_layout(columns):
    """[ROWS, columns] as four warps of wgmma leave it in registers."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.jit
def _num_tiles(num_rows, N: gl.constexpr, GROUPS: gl.constexpr, COLUMNS: gl.constexpr):
    """How many are below each other, and beside."""
    return gl.cdiv(num_rows, GROUPS * ROWS), (N + COLUMNS - 1) // COLUMNS


@gluon.jit
def _place(tile, below, beside):
    """Where the tile is: in bands of BAND tiles below each other, from left to right."""
    band = tile // (BAND * beside)
    rest = tile % (BAND * beside)
    height = gl.minimum(below - band * BAND, BAND)
    return band * BAND + rest % height, rest // height


@gluon.jit
def _ask_for_weights(
    weight_desc, w_smem, full, n, step, slot, N: gl.constexpr, GROUPS: gl.constexpr
):
    """Gates in the slot's first half, ups in its second. The barrier expects the rows, too."""
    COLUMNS: gl.constexpr = w_smem.shape[1] // 2
    halves_shape: gl.constexpr = [w_smem.shape[0] * 2, COLUMNS, DEPTH]
    halves = w_smem._reinterpret(w_smem.dtype, halves_shape, _SIDE)
    barrier = full.index(slot)
    mbarrier.expect(barrier, (GROUPS * ROWS + 2 * COLUMNS) * DEPTH * 2)
    for i in gl.static_range(2):
        tma.async_copy_global_to_shared(
            weight_desc, [i * N + n, step * DEPTH], barrier, halves.index(slot * 2 + i)
        )


@gluon.jit
def _load(
    ring,
    x_desc,
    weight_desc,
    num_rows,
    N: gl.constexpr,
    K: gl.constexpr,
    GROUPS: gl.constexpr,
    PDL: gl.constexpr,
):
    """The loading warp. What is outside of a matrix is loaded as 0."""
    x_smem, w_smem, full, empty = ring
    SLOTS: gl.constexpr = w_smem.shape[0]
    COLUMNS: gl.constexpr = w_smem.shape[1] // 2
    STEPS: gl.constexpr = (K + DEPTH - 1) // DEPTH
    below, beside = _num_tiles(num_rows, N, GROUPS, COLUMNS)
    # The first weights do not wait for the kernel that makes the rows.
    EARLY: gl.constexpr = min(SLOTS, STEPS)
    _, first = _place(gl.program_id(0), below, beside)
    for slot in gl.static_range(EARLY):
        _ask_for_weights(weight_desc, w_smem, full, first * COLUMNS, slot, slot, N, GROUPS)
    wait_for_previous(PDL)
    pieces = 0
    for tile in range(gl.program_id(0), below * beside, gl.num_programs(0)):
        row, column = _place(tile, below, beside)
        for step in range(STEPS):
            to = pieces % SLOTS
            mbarrier.wait(empty.index(to), (pieces // SLOTS & 1) ^ 1)
            if pieces >= EARLY:
                _ask_for_weights(weight_desc, w_smem, full, column * COLUMNS, step, to, N, GROUPS)
            for i in gl.static_range(GROUPS):
                tma.async_copy_global_to_shared(
                    x_desc,
                    [(row * GROUPS + i) * ROWS, step * DEPTH],
                    full.index(to),
                    x_smem.index(to * GROUPS + i),
                )
            pieces += 1


@gluon.jit
def _multiply(
    ring,
    out_smem,
    out_desc,
    num_rows,
    MEMBER: gl.constexpr,
    N: gl.constexpr,
    K: gl.constexpr,
    GROUPS: gl.constexpr,
):
    """A group: rows [ROWS * MEMBER, ROWS * (MEMBER + 1)) of each tile."""
    x_smem, w_smem, full, empty = ring
    SLOTS: gl.constexpr = w_smem.shape[0]
    COLUMNS: gl.constexpr = w_smem.shape[1] // 2
    STEPS: gl.constexpr = (K + DEPTH - 1) // DEPTH
    below, beside = _num_tiles(num_rows, N, GROUPS, COLUMNS)
    pieces = 0
    for tile in range(gl.program_id(0), below * beside, gl.num_programs(0)):
        row, column = _place(tile, below, beside)
        products = gl.zeros([ROWS, 2 * COLUMNS], gl.float32, _product_layout(2 * COLUMNS))
        for step in range(STEPS):
            slot = pieces % SLOTS
            mbarrier.wait(full.index(slot), pieces // SLOTS & 1)
            products = warpgroup_mma(
                x_smem.index(slot * GROUPS + MEMBER),
                w_smem.index(slot).permute((1, 0)),
                products,
                use_acc=step > 0,
                is_async=True,
            )
            # All but this one are done.
            products = warpgroup_mma_wait(1, [products])
            mbarrier.arrive(empty.index((pieces + SLOTS - 1) % SLOTS), count=1, pred=step > 0)
            pieces += 1
        products = warpgroup_mma_wait(0, [products])
        mbarrier.arrive(empty.index((pieces + SLOTS - 1) % SLOTS), count=1)
        halves = gl.permute(gl.reshape(products, [ROWS, 2, COLUMNS]), (0, 2, 1))
        gate, up = gl.split(halves)
        gate = gate.to(out_smem.dtype).to(gl.float32)
        y = silu(gate) * up.to(out_smem.dtype).to(gl.float32)
        y = gl.convert_layout(y.to(out_smem.dtype), _product_layout(COLUMNS), assert_trivial=True)
        # The tile before has left shared memory; this one leaves while the next is multiplied.
        tma.store_wait(0)
        out_smem.store(y)
        fence_async_shared()
        tma.async_copy_shared_to_global(
            out_desc, [(row * GROUPS + MEMBER) * ROWS, column * COLUMNS], out_smem
        )
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_rows"])
def gated_hopper_kernel(
    x_desc,
    weight_desc,
    out_desc,
    num_rows,
    N: gl.constexpr,
    K: gl.constexpr,
    GROUPS: gl.constexpr,
    COLUMNS: gl.constexpr,
    SLOTS: gl.constexpr,
    PDL: gl.constexpr,
):
    """Each program does every num_programs-th tile of GROUPS * ROWS rows and COLUMNS columns."""
    start_next(PDL)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    dtype: gl.constexpr = x_desc.dtype
    x_smem = gl.allocate_shared_memory(dtype, [SLOTS * GROUPS, ROWS, DEPTH], _SIDE)
    w_smem = gl.allocate_shared_memory(dtype, [SLOTS, 2 * COLUMNS, DEPTH], _SIDE)
    out_smem = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, COLUMNS], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIER)
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIER)
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    ring = (x_smem, w_smem, full, empty)
    if GROUPS == 1:
        gl.warp_specialize(
            [
                (_multiply, (ring, out_smem.index(0), out_desc, num_rows, 0, N, K, GROUPS)),
                (_load, (ring, x_desc, weight_desc, num_rows, N, K, GROUPS, PDL)),
            ],
            [1],
            [40],
        )
    else:
        gl.static_assert(GROUPS == 2)
        gl.warp_specialize(
            [
                (_multiply, (ring, out_smem.index(0), out_desc, num_rows, 0, N, K, GROUPS)),
                (_multiply, (ring, out_smem.index(1), out_desc, num_rows, 1, N, K, GROUPS)),
                (_load, (ring, x_desc, weight_desc, num_rows, N, K, GROUPS, PDL)),
            ],
            [4, 1],
            [232, 40],
        )


class Tile(NamedTuple):
    """What a program computes at a time. Bits do not depend on it."""

    groups: int
    columns: int

    def num_tiles(self, num_rows: int, n: int) -> int:
        below = triton.cdiv(num_rows, self.groups * ROWS.value)
        return int(below * triton.cdiv(n, self.columns))

    def num_slots(self, k: int) -> int:
        """Pieces in the ring: as many as fit beside the tile that leaves, and barriers."""
        slot_bytes = (self.groups * ROWS.value + 2 * self.columns) * DEPTH.value * 2
        out_bytes = self.groups * ROWS.value * self.columns * 2
        return int(min(triton.cdiv(k, DEPTH.value), (226 * 1024 - out_bytes) // slot_bytes))


LARGE = Tile(2, 128)
TILES = (LARGE, Tile(2, 64), Tile(1, 128), Tile(1, 64), Tile(1, 32))
FEW_ROWS = 256
ENOUGH_PROGRAMS = 96
"""That read weights as fast as more would."""


def choose_tile(num_rows: int, n: int, k: int, num_processors: int) -> Tile | None:
    """For x [num_rows, K] and out [num_rows, n]; None where cuBLAS and an activation are faster.

    Few rows take as long as their weights are read: by as many programs as run at once. Of many,
    the last tiles leave processors idle, which cuBLAS, having other tiles, can avoid: that must
    cost less than what this kernel saves, which is to write and read gates and ups, some 180 / K
    of the product. Measured on an H200.
    """
    if n % 8 or k % 8:
        return None
    if num_rows <= FEW_ROWS:
        for tile in TILES:
            fits = num_rows > ROWS.value or tile.groups == 1
            if fits and ENOUGH_PROGRAMS <= tile.num_tiles(num_rows, n) <= num_processors:
                return tile
        return None
    rounds = LARGE.num_tiles(num_rows, n) / num_processors
    saved = 180 / (180 + k)
    return LARGE if 1 - rounds / math.ceil(rounds) < saved else None


_launch = Launcher(gated_hopper_kernel)


def launch_gated_hopper(x: Tensor, weight: Tensor, out: Tensor, tile: Tile) -> None:
    """x [M, K], weight [2 N, K], contiguous, out [M, N], contiguous.

    Rows of all three begin at multiples of 16 bytes.
    """
    num_rows, k = x.shape
    n = out.shape[1]
    row_side, out_side = side(DEPTH.value), side(tile.columns)
    programs = min(tile.num_tiles(num_rows, n), num_multiprocessors(x.device))
    _launch(
        (programs, 1, 1),
        (
            TensorDescriptor(
                x, [num_rows, k], [x.stride(0), 1], [ROWS.value, DEPTH.value], row_side
            ),
            TensorDescriptor(weight, [2 * n, k], [k, 1], [tile.columns, DEPTH.value], row_side),
            TensorDescriptor(out, [num_rows, n], [n, 1], [ROWS.value, tile.columns], out_side),
            num_rows,
        ),
        (n, k, tile.groups, tile.columns, tile.num_slots(k)),
    )
