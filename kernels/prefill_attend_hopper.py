"""The attending groups of paged_prefill_hopper: four warps of wgmma for 64 rows of a tile each."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from pagetwin.kernels.pages_hopper import SIDE, clear_values
from pagetwin.kernels.prefill_load_hopper import first_key, nth_item
from pagetwin.kernels.wgmma_softmax import (
    TILE,
    fold_split,
    lane_layout,
    masked,
    packed,
    product_layout,
    softmax_step,
    total_sum,
    unpacked,
)

_SIDE: gl.constexpr = gl.constexpr(SIDE)


@gluon.jit
def _step(
    state,
    rings,
    folded_smem,
    tile,
    tiles,
    scores,
    MEMBER: gl.constexpr,
    SPLIT_TILES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    MASKED: gl.constexpr,
):
    """Begins the products of keys `tile`, ends with those of the values before; see attend."""
    q_smem, k_smem, v_smem, _q_full, _q_empty, k_full, k_empty, v_full, v_empty = rings
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    SCORES: gl.constexpr = product_layout(128)
    OUT: gl.constexpr = product_layout(HEAD)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUT_ROW: gl.constexpr = gl.SliceLayout(1, OUT)
    position, scale, sliding_window = scores
    weights, maximum, sums, weighted, folded_maximum, folded_total, has_folded = state
    nothing = gl.zeros([64, 128], gl.float32, SCORES)
    stage = tiles % STAGES
    next_stage = (tiles + 1) % STAGES
    weights = unpacked(weights, v_smem.dtype, WEIGHTS)
    mbarrier.wait(k_full.index(next_stage), (tiles + 1) // STAGES & 1)
    products = warpgroup_mma(
        q_smem.index(MEMBER),
        k_smem.index(next_stage).permute((1, 0)),
        nothing,
        use_acc=False,
        is_async=True,
    )
    mbarrier.wait(v_full.index(stage), tiles // STAGES & 1)
    weighted = warpgroup_mma(weights, v_smem.index(stage), weighted, is_async=True)
    products = warpgroup_mma_wait(1, [products])
    mbarrier.arrive(k_empty.index(next_stage), count=1)
    is_new = tile % SPLIT_TILES == 0
    old_maximum = gl.where(is_new, float("-inf"), maximum)
    if MASKED:
        products = masked(products, tile, position, sliding_window, HAS_WINDOW)
    wide, rescale, new_maximum, new_sums = softmax_step(products, scale, old_maximum, sums)
    # Over already; but the assembler moves no softmax beyond its branch, to after the products.
    mbarrier.wait(v_full.index(stage), tiles // STAGES & 1)
    weighted = warpgroup_mma_wait(0, [weighted])
    mbarrier.arrive(v_empty.index(stage), count=1)
    weights = packed(wide, v_smem.dtype)
    if is_new:
        split_total = total_sum(sums, ROW)
        if has_folded:
            earlier = folded_smem.load(OUT)
            folded_maximum, folded_total, weighted = fold_split(
                folded_maximum, folded_total, earlier, maximum, split_total, weighted
            )
        else:
            folded_maximum = maximum
            folded_total = split_total
        folded_smem.store(weighted)
        has_folded = True
        weighted = gl.zeros([64, HEAD], gl.float32, OUT)
    else:
        across = gl.convert_layout(rescale, OUT_ROW, assert_trivial=True)
        weighted = weighted * across[:, None]
    return weights, new_maximum, new_sums, weighted, folded_maximum, folded_total, has_folded


@gluon.jit
def _first_tile(rings, tile, tiles, scores, MEMBER: gl.constexpr, HAS_WINDOW: gl.constexpr):
    """The first tile of keys of an item: weights, maximum and sums."""
    q_smem, k_smem, v_smem, _q_full, _q_empty, k_full, k_empty, _v_full, _v_empty = rings
    STAGES: gl.constexpr = k_smem.shape[0]
    SCORES: gl.constexpr = product_layout(128)
    position, scale, sliding_window = scores
    stage = tiles % STAGES
    mbarrier.wait(k_full.index(stage), tiles // STAGES & 1)
    products = warpgroup_mma(
        q_smem.index(MEMBER),
        k_smem.index(stage).permute((1, 0)),
        gl.zeros([64, 128], gl.float32, SCORES),
        use_acc=False,
        is_async=True,
    )
    products = warpgroup_mma_wait(0, [products])
    mbarrier.arrive(k_empty.index(stage), count=1)
    maximum = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    sums = gl.zeros([64, 16], gl.float32, lane_layout())
    products = masked(products, tile, position, sliding_window, HAS_WINDOW)
    weights, _, maximum, sums = softmax_step(products, scale, maximum, sums)
    return packed(weights, v_smem.dtype), maximum, sums


@gluon.jit
def _last_values(state, rings, tiles, end, BOX: gl.constexpr):
    """The products with an item's last tile of values, which nothing else is computed beside."""
    _q_smem, _k_smem, v_smem, _q_full, _q_empty, _k_full, _k_empty, v_full, v_empty = rings
    weights, maximum, sums, weighted, folded_maximum, folded_total, has_folded = state
    STAGES: gl.constexpr = v_smem.shape[0]
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, product_layout(v_smem.shape[2]), 2)
    stage = tiles % STAGES
    mbarrier.wait(v_full.index(stage), tiles // STAGES & 1)
    if end % BOX > 0:
        last = end % TILE
        clear_values(v_smem, stage, last, gl.cdiv(last, BOX) * BOX)
    weighted = warpgroup_mma(
        unpacked(weights, v_smem.dtype, WEIGHTS), v_smem.index(stage), weighted, is_async=True
    )
    weighted = warpgroup_mma_wait(0, [weighted])
    mbarrier.arrive(v_empty.index(stage), count=1)
    return weights, maximum, sums, weighted, folded_maximum, folded_total, has_folded


@gluon.jit
def _folded(state, folded_smem):
    """Maximum, total and weighted sums of all of an item's splits, the last one's included."""
    _weights, maximum, sums, weighted, folded_maximum, folded_total, has_folded = state
    ROW: gl.constexpr = maximum.type.layout
    OUT: gl.constexpr = weighted.type.layout
    total = total_sum(sums, ROW)
    if has_folded:
        earlier = folded_smem.load(OUT)
        maximum, total, weighted = fold_split(
            folded_maximum, folded_total, earlier, maximum, total, weighted
        )
    return maximum, total, weighted


@gluon.jit
def _store_rows(
    out_ptr,
    record,
    head,
    out_stride,
    result,
    folded_smem,
    DTYPE: gl.constexpr,
    num_rows,
    MEMBER: gl.constexpr,
):
    """By way of shared memory, which holds nothing now, so that rows are stored whole."""
    HEAD: gl.constexpr = result.shape[1]
    STORED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD, HEAD // 8], [4, 1], [1, 0])
    result_smem = folded_smem._reinterpret(DTYPE, [2, 64, HEAD], _SIDE)
    result_smem = result_smem.index(0)
    result_smem.store(result.to(DTYPE))
    member = MEMBER * 64 + gl.arange(0, 64, gl.SliceLayout(1, STORED))
    column = gl.arange(0, HEAD, gl.SliceLayout(0, STORED))
    out_row_ptr = out_ptr + (gl.load(record).to(gl.int64) * out_stride + head * HEAD)
    gl.store(
        out_row_ptr + (member[:, None] * out_stride + column[None, :]),
        result_smem.load(STORED),
        mask=(member < num_rows)[:, None] & (column >= 0)[None, :],
    )


@gluon.jit
def attend(
    rings,
    folded_smem,
    work,
    MEMBER: gl.constexpr,
    NUM_HEADS: gl.constexpr,
    BOX: gl.constexpr,
    SPLIT: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SINKS: gl.constexpr,
):
    """A group of four warps: rows [64 * MEMBER, 64 * (MEMBER + 1)) of each tile of rows."""
    _q_smem, k_smem, v_smem, q_full, q_empty, _k_full, _k_empty, v_full, _v_empty = rings
    tiles_ptr, out_ptr, sinks_ptr, num_items, scale, sliding_window, out_stride = work
    STAGES: gl.constexpr = k_smem.shape[0]
    HEAD: gl.constexpr = k_smem.shape[2]
    SCORES: gl.constexpr = product_layout(128)
    OUT: gl.constexpr = product_layout(HEAD)
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    SPLIT_TILES: gl.constexpr = SPLIT // TILE
    items = 0
    tiles = 0
    for nth in range(gl.cdiv(num_items, gl.num_programs(0))):
        item = nth_item(nth)
        record = tiles_ptr + item // NUM_HEADS * 4
        num_rows = gl.load(record + 3, mask=item < num_items, other=0)
        if num_rows > 0:
            first_position = gl.load(record + 1)
            oldest = first_key(first_position, sliding_window, HAS_WINDOW)
            end = first_position + num_rows
            start = oldest // TILE
            stop = gl.cdiv(end, TILE)
            position = first_position + MEMBER * 64 + gl.arange(0, 64, ROW)
            scores = (position, scale, sliding_window)

            mbarrier.wait(q_full, items & 1)
            weights, maximum, sums = _first_tile(rings, start, tiles, scores, MEMBER, HAS_WINDOW)
            weighted = gl.zeros([64, HEAD], gl.float32, OUT)
            folded_maximum = maximum
            folded_total = gl.zeros([64], gl.float32, ROW)
            has_folded = False
            if HAS_WINDOW:  # noqa: SIM102 (decided by the compiler)
                if oldest % BOX > 0:
                    stage = tiles % STAGES
                    mbarrier.wait(v_full.index(stage), tiles // STAGES & 1)
                    clear_values(v_smem, stage, oldest % TILE // BOX * BOX, oldest % TILE)

            state = (weights, maximum, sums, weighted, folded_maximum, folded_total, has_folded)
            whole = gl.maximum((first_position + MEMBER * 64 + 1) // TILE, start + 1)
            whole = gl.minimum(whole, stop)
            masked_until = start + 1
            if HAS_WINDOW:
                newest = gl.minimum(first_position + MEMBER * 64 + 63, end - 1)
                masked_until = gl.cdiv(first_key(newest, sliding_window, True), TILE)
                masked_until = gl.minimum(gl.maximum(masked_until, start + 1), stop)
                whole = gl.maximum(whole, masked_until)
            if HAS_WINDOW:
                for tile in range(start + 1, masked_until):
                    state = _step(
                        state,
                        rings,
                        folded_smem,
                        tile,
                        tiles,
                        scores,
                        MEMBER,
                        SPLIT_TILES,
                        HAS_WINDOW,
                        MASKED=True,
                    )
                    tiles += 1
            for tile in range(masked_until, whole):
                state = _step(
                    state,
                    rings,
                    folded_smem,
                    tile,
                    tiles,
                    scores,
                    MEMBER,
                    SPLIT_TILES,
                    HAS_WINDOW,
                    MASKED=False,
                )
                tiles += 1
            for tile in range(whole, stop):
                state = _step(
                    state,
                    rings,
                    folded_smem,
                    tile,
                    tiles,
                    scores,
                    MEMBER,
                    SPLIT_TILES,
                    HAS_WINDOW,
                    MASKED=True,
                )
                tiles += 1
            mbarrier.arrive(q_empty, count=1)
            state = _last_values(state, rings, tiles, end, BOX)
            tiles += 1
            items += 1
            maximum, total, weighted = _folded(state, folded_smem)
            head = item % NUM_HEADS
            if HAS_SINKS:
                sink = gl.load(sinks_ptr + head).to(gl.float32) * 1.4426950408889634
                sink = gl.full([64], sink, gl.float32, ROW)
                maximum, total, weighted = fold_split(
                    maximum, total, weighted, sink, 1.0, gl.zeros_like(weighted)
                )
            total = gl.where(total == 0.0, 1.0, total)
            total = gl.convert_layout(total, gl.SliceLayout(1, OUT), assert_trivial=True)
            result = weighted / total[:, None]
            _store_rows(
                out_ptr,
                record,
                head,
                out_stride,
                result,
                folded_smem,
                v_smem.dtype,
                num_rows,
                MEMBER,
            )
