"""The loading warp of paged_prefill_hopper: a program's items, and what is fetched for them."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from pagetwin.kernels.pages_hopper import SIDE
from pagetwin.kernels.wgmma_softmax import TILE

GROUP_ROWS = gl.constexpr(64)
_SIDE: gl.constexpr = gl.constexpr(SIDE)


@gluon.jit
def nth_item(nth):
    """Each program's items, back and forth over the list, so that long and short ones even out."""
    programs = gl.num_programs(0)
    program = gl.program_id(0)
    return nth * programs + gl.where(nth % 2 == 0, program, programs - 1 - program)


@gluon.jit
def first_key(position, sliding_window, HAS_WINDOW: gl.constexpr):
    """The oldest key that a row at `position` sees."""
    if HAS_WINDOW:
        return gl.maximum(position - sliding_window + 1, 0)
    else:
        return position * 0


@gluon.jit
def load_tiles(
    rings,
    q_desc,
    cache_desc,
    tiles_ptr,
    num_items,
    sliding_window,
    places,
    NUM_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    BOX: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
):
    """The loading warp: queries, then tile after tile of keys and values, box after box.

    A box (pages_hopper) without visible keys is asked for beyond the cache, which gives 0.
    """
    q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty = rings
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    block_tables_ptr, table_stride, first_value_row, no_row = places
    HALVES: gl.constexpr = HEAD // 64
    BOXES: gl.constexpr = TILE // BOX
    TILE_BYTES: gl.constexpr = TILE * HEAD * 2
    box_shape: gl.constexpr = [STAGES * HALVES * BOXES, BOX, 64]
    k_boxes = k_smem._reinterpret(k_smem.dtype, box_shape, _SIDE)
    v_boxes = v_smem._reinterpret(v_smem.dtype, box_shape, _SIDE)
    items = 0
    tiles = 0
    for nth in range(gl.cdiv(num_items, gl.num_programs(0))):
        item = nth_item(nth)
        record = tiles_ptr + item // NUM_HEADS * 4
        num_rows = gl.load(record + 3, mask=item < num_items, other=0)
        if num_rows > 0:
            row = gl.load(record)
            position = gl.load(record + 1)
            table_ptr = block_tables_ptr + gl.load(record + 2).to(gl.int64) * table_stride
            head = item % NUM_HEADS
            oldest = first_key(position, sliding_window, HAS_WINDOW)
            end = position + num_rows

            mbarrier.wait(q_empty, (items & 1) ^ 1)
            mbarrier.expect(q_full, 2 * GROUP_ROWS * HEAD * 2)
            for i in gl.static_range(2):
                tma.async_copy_global_to_shared(
                    q_desc, [row + i * GROUP_ROWS, head * HEAD], q_full, q_smem.index(i)
                )
            items += 1

            column = head // GROUP * HEAD
            for tile in range(oldest // TILE, gl.cdiv(end, TILE)):
                rows = ()
                for i in gl.static_range(BOXES):
                    key = tile * TILE + i * BOX
                    wanted = (key < end) & (key + BOX > oldest)
                    block = gl.load(table_ptr + key // BLOCK_SIZE, mask=wanted, other=0)
                    cache_row = block * BLOCK_SIZE + key % BLOCK_SIZE
                    rows = rows + (gl.where(wanted, cache_row, no_row),)  # type: ignore[assignment] # noqa: RUF005
                stage = tiles % STAGES
                phase = (tiles // STAGES & 1) ^ 1
                mbarrier.wait(k_empty.index(stage), phase)
                mbarrier.expect(k_full.index(stage), TILE_BYTES)
                for half in gl.static_range(HALVES):
                    for i in gl.static_range(BOXES):
                        tma.async_copy_global_to_shared(
                            cache_desc,
                            [rows[i], column + half * 64],
                            k_full.index(stage),
                            k_boxes.index((stage * HALVES + half) * BOXES + i),
                        )
                mbarrier.wait(v_empty.index(stage), phase)
                mbarrier.expect(v_full.index(stage), TILE_BYTES)
                for half in gl.static_range(HALVES):
                    for i in gl.static_range(BOXES):
                        tma.async_copy_global_to_shared(
                            cache_desc,
                            [first_value_row + rows[i], column + half * 64],
                            v_full.index(stage),
                            v_boxes.index((stage * HALVES + half) * BOXES + i),
                        )
                tiles += 1
