"""Attention of the items in the queue of paged_decode_hopper, in Gluon: a group of four warps.

wgmma multiplies 64 rows, and an item has 16 at most: each warp of a group has the same ones, and
what the first one finds is stored. There is time for that: the products of a tile take half as long
as its read.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from pagetwin.kernels.decode_queue_hopper import (
    ANY_SLOT,
    END,
    FIRST_MEMBER,
    FIRST_TILE,
    GROUPS,
    KV_HEAD,
    NUM_MEMBERS,
    ROWS,
    WORDS,
    read_word,
    split_start,
)
from pagetwin.kernels.decode_splits_hopper import arrive, store_result
from pagetwin.kernels.pages_hopper import clear_values
from pagetwin.kernels.wgmma_softmax import (
    TILE,
    lane_layout,
    masked,
    product_layout,
    softmax_step,
    total_sum,
)


@gluon.constexpr_function
def _copied_rows(columns):
    """[4, ROWS, columns]: the left operand of a product, each of four warps with all rows."""
    bases = [[0, 0, 1], [0, 8, 0], [0, 0, 8]]
    while 8 * 2 ** (len(bases) - 2) < columns:
        bases.append([0, 0, 8 * 2 ** (len(bases) - 2)])
    return gl.DistributedLinearLayout(
        reg_bases=bases,
        lane_bases=[[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[1, 0, 0], [2, 0, 0]],
        block_bases=[],
        shape=[4, 16, columns],
    )


@gluon.jit
def _copied(rows_smem):
    """[ROWS, n] in shared memory to [64, n] in registers."""
    COLUMNS: gl.constexpr = rows_smem.shape[1]
    COPIED: gl.constexpr = _copied_rows(COLUMNS)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, product_layout(128), 2)
    rows = gl.expand_dims(rows_smem.load(gl.SliceLayout(0, COPIED)), 0)
    rows, _ = gl.broadcast(rows, gl.zeros([4, ROWS, COLUMNS], rows.dtype, COPIED))
    return gl.convert_layout(gl.reshape(rows, [64, COLUMNS]), LEFT, assert_trivial=True)


@gluon.jit
def _attend_split(q_smem, ring, end, tiles, scale, BOX: gl.constexpr, SPLIT: gl.constexpr):
    """Maximum, total and weighted sum of an item's rows, of which `tiles` is the first tile.

    A barrier tells that its latest phase is over, not which that was. A group may be more than one
    phase ahead, since tiles between belong to the other group: so it waits for its place to be
    empty before it waits for it to be full. (For its first tile, that the loading warp has begun.)
    """
    k_smem, v_smem, k_full, k_empty, v_full, v_empty = ring
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    SCORES: gl.constexpr = product_layout(128)
    OUT: gl.constexpr = product_layout(HEAD)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUT_ROW: gl.constexpr = gl.SliceLayout(1, OUT)
    nothing = gl.zeros([64, 128], gl.float32, SCORES)
    position = gl.full([64], 0, gl.int32, ROW) + (end - 1)
    maximum = gl.full([64], float("-inf"), gl.float32, ROW)
    sums = gl.zeros([64, 16], gl.float32, lane_layout())
    weighted = gl.zeros([64, HEAD], gl.float32, OUT)
    for tile in range(split_start(end, SPLIT) // TILE, gl.cdiv(end, TILE)):
        stage = tiles % STAGES
        phase = tiles // STAGES & 1
        k = k_smem.index(stage).permute((1, 0))
        mbarrier.wait(k_empty.index(stage), phase ^ 1)
        mbarrier.wait(k_full.index(stage), phase)
        # Loaded for each tile anew: ptxas 12.8 overwrites queries that stay in registers.
        products = warpgroup_mma(_copied(q_smem), k, nothing, use_acc=False, is_async=True)
        products = warpgroup_mma_wait(0, [products])
        mbarrier.arrive(k_empty.index(stage), count=1)
        if tile * TILE + TILE > end:
            products = masked(products, tile, position, 0, False)
        weights, rescale, maximum, sums = softmax_step(products, scale, maximum, sums)
        weighted *= gl.convert_layout(rescale, OUT_ROW, assert_trivial=True)[:, None]
        weights = gl.convert_layout(weights.to(v_smem.dtype), WEIGHTS, assert_trivial=True)
        mbarrier.wait(v_empty.index(stage), phase ^ 1)
        mbarrier.wait(v_full.index(stage), phase)
        if (tile * TILE + TILE > end) & (end % BOX > 0):
            last = end % TILE
            clear_values(v_smem, stage, last, gl.cdiv(last, BOX) * BOX)
        weighted = warpgroup_mma(weights, v_smem.index(stage), weighted, is_async=True)
        weighted = warpgroup_mma_wait(0, [weighted])
        mbarrier.arrive(v_empty.index(stage), count=1)
        tiles += 1
    total = gl.convert_layout(total_sum(sums, ROW), OUT_ROW, assert_trivial=True)
    return gl.convert_layout(maximum, OUT_ROW, assert_trivial=True), total, weighted


@gluon.jit
def attend_items(
    queue,
    ring,
    results,
    members_ptr,
    scale,
    NTH: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    BOX: gl.constexpr,
    SPLIT: gl.constexpr,
):
    """A group of four warps: items NTH, NTH + GROUPS and so on of the queue."""
    q_smem, words_smem, _, entry_full, entry_empty, begun = queue
    ENTRIES: gl.constexpr = q_smem.shape[0]
    HEAD: gl.constexpr = q_smem.shape[2]
    row = gl.arange(0, 64, gl.SliceLayout(1, product_layout(HEAD)))
    items = gl.to_tensor(NTH)
    mbarrier.wait(entry_full.index(NTH), 0)
    end = read_word(words_smem, NTH * WORDS + END)
    while end >= 0:
        entry = items % ENTRIES
        words = entry * WORDS
        first_member = members_ptr + read_word(words_smem, words + FIRST_MEMBER) * 4
        num_members = read_word(words_smem, words + NUM_MEMBERS)
        kv_head = read_word(words_smem, words + KV_HEAD)
        tiles = read_word(words_smem, words + FIRST_TILE)
        is_part = read_word(words_smem, words + ANY_SLOT) >= 0
        is_row = row < num_members * GROUP
        member = first_member + row // GROUP * 4
        query = gl.load(member, mask=is_row, other=0).to(gl.int64)
        slot = gl.load(member + 2, mask=is_row, other=-1)
        row_of = (is_row, query, kv_head * GROUP + row % GROUP, slot)

        mbarrier.wait(begun.index(entry), items // ENTRIES & 1)
        state = _attend_split(q_smem.index(entry), ring, end, tiles, scale, BOX, SPLIT)
        mbarrier.arrive(entry_empty.index(entry), count=1)
        split = split_start(end, SPLIT) // SPLIT
        store_result(state, row_of, results, split, is_part, NUM_KV_HEADS, GROUP)
        if is_part:
            arrive(first_member, num_members, results, kv_head, NUM_KV_HEADS, GROUP, HEAD)
        items += GROUPS
        entry = items % ENTRIES
        mbarrier.wait(entry_full.index(entry), items // ENTRIES & 1)
        end = read_word(words_smem, entry * WORDS + END)
