"""The queue of a program of paged_decode_hopper, in Gluon: items that are drawn ahead.

One warp fills it; a loading warp and groups of warps that attend read it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from pagetwin.kernels.pdl import wait_for_previous
from pagetwin.kernels.wgmma_softmax import TILE

ROWS = gl.constexpr(16)
"""Rows of q of an item, padding included: query heads of a KV head, times members."""
GROUPS = gl.constexpr(2)
"""Groups of warps that attend, each for every other item."""
WORDS = gl.constexpr(8)
"""What an entry of the queue says of its item, in 32-bit words:"""
END = gl.constexpr(0)
"""Of its keys, as in DecodeWork; -1 = there are no more items."""
FIRST_MEMBER = gl.constexpr(1)
NUM_MEMBERS = gl.constexpr(2)
KV_HEAD = gl.constexpr(3)
FIRST_TILE = gl.constexpr(4)
"""How many tiles the program has read before it."""
ANY_SLOT = gl.constexpr(5)
"""A slot of a member, or -1: none of them waits for other splits."""
WORD_LAYOUT: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def read_word(words, at):
    """A word of shared memory, for all threads of a part."""
    ALL: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.max(words.index(at).load(ALL), 0)


@gluon.jit
def split_start(end, SPLIT: gl.constexpr):
    return gl.maximum(end - 1, 0) // SPLIT * SPLIT


@gluon.jit
def _draw(arrivals_ptr, num_todo):
    """The number of the next item that nobody has, or num_todo or more: see paged_decode_kernel."""
    num_programs = gl.num_programs(0)
    todo = num_todo
    if num_programs < num_todo:
        ticket = gl.atomic_add(arrivals_ptr, 1, sem="relaxed")
        if ticket == num_todo - 1:
            # Every program has drawn the one ticket that is too many: this was the last.
            gl.store(arrivals_ptr, 0)
        todo = num_programs + ticket
    return todo


@gluon.jit
def _read_record(items_ptr, todo, NUM_KV_HEADS: gl.constexpr):
    record = items_ptr + todo // NUM_KV_HEADS * 4
    return gl.load(record), gl.load(record + 1), gl.load(record + 2), gl.load(record + 3)


@gluon.jit
def queue_items(
    queue,
    work,
    q_ptr,
    q_stride_row,
    q_stride_head,
    no_row,
    table_stride,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    BOX: gl.constexpr,
    SPLIT: gl.constexpr,
    PDL: gl.constexpr,
):
    """The first warp: items into the queue, with the rows of their boxes; then their queries."""
    q_smem, words_smem, rows_smem, entry_full, entry_empty, begun = queue
    tables_ptr, items_ptr, members_ptr, num_items_ptr, arrivals_ptr = work
    ENTRIES: gl.constexpr = q_smem.shape[0]
    HEAD: gl.constexpr = q_smem.shape[2]
    BOXES: gl.constexpr = SPLIT // BOX
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    Q: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD, HEAD // 8], [1, 1], [1, 0])
    entry_words = words_smem._reinterpret(gl.int32, [ENTRIES, WORDS], WORD_LAYOUT)
    entry_rows = rows_smem._reinterpret(gl.int32, [ENTRIES, BOXES], WORD_LAYOUT)
    word = gl.arange(0, WORDS, LINE)
    box = gl.arange(0, BOXES, LINE)
    row = gl.arange(0, ROWS, gl.SliceLayout(1, Q))
    column = gl.arange(0, HEAD, gl.SliceLayout(0, Q))
    todo = gl.program_id(0)
    table_row, end, first_member, num_members = _read_record(items_ptr, todo, NUM_KV_HEADS)
    num_todo = gl.load(num_items_ptr) * NUM_KV_HEADS
    items = 0
    tiles = 0
    while todo < num_todo:
        kv_head = todo % NUM_KV_HEADS
        start = split_start(end, SPLIT)
        table_ptr = tables_ptr + table_row.to(gl.int64) * table_stride
        key = start + box * BOX
        wanted = key < end
        block = gl.load(table_ptr + key // BLOCK_SIZE, mask=wanted, other=0)
        cache_row = gl.where(wanted, block * BLOCK_SIZE + key % BLOCK_SIZE, no_row)
        is_row = row < num_members * GROUP
        member = members_ptr + (first_member + row // GROUP) * 4
        query = gl.load(member, mask=is_row, other=0).to(gl.int64)
        any_slot = gl.max(gl.load(member + 2, mask=is_row, other=-1), 0)
        words = gl.where(word == END, end, first_member)
        words = gl.where(word == NUM_MEMBERS, num_members, words)
        words = gl.where(word == KV_HEAD, kv_head, words)
        words = gl.where(word == FIRST_TILE, tiles, words)
        words = gl.where(word == ANY_SLOT, any_slot, words)
        entry = items % ENTRIES
        mbarrier.wait(entry_empty.index(entry), (items // ENTRIES & 1) ^ 1)
        entry_words.index(entry).store(words)
        entry_rows.index(entry).store(cache_row)
        mbarrier.arrive(entry_full.index(entry), count=1)
        tiles += gl.cdiv(end - start, TILE)

        wait_for_previous(PDL)
        q_offsets = query * q_stride_row + (kv_head * GROUP + row % GROUP) * q_stride_head
        q_ptrs = q_ptr + (q_offsets[:, None] + column[None, :])
        q = gl.load(q_ptrs, mask=is_row[:, None] & (column >= 0)[None, :], other=0.0)
        todo = _draw(arrivals_ptr, num_todo)
        table_row, end, first_member, num_members = _read_record(
            items_ptr, gl.minimum(todo, num_todo - 1), NUM_KV_HEADS
        )
        q_smem.index(entry).store(q)
        mbarrier.arrive(begun.index(entry), count=1)
        items += 1
    for i in gl.static_range(GROUPS):
        entry = (items + i) % ENTRIES
        mbarrier.wait(entry_empty.index(entry), ((items + i) // ENTRIES & 1) ^ 1)
        entry_words.index(entry).store(gl.full([WORDS], -1, gl.int32, LINE))
        mbarrier.arrive(entry_full.index(entry), count=1)
