"""Mutants of the allocator: blocks lost, issued twice, or counted wrongly."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

POOL = "pagetwin.engine.block_pool:BlockPool"
MANAGER = "pagetwin.engine.block_manager:BlockManager"
ADMISSION = "pagetwin.engine.admission:Admission"
PLANNER = "pagetwin.engine.planning:Planner"
STATE = "pagetwin.engine.scheduler_state:SchedulerState"
SCHEDULER = "pagetwin.engine.scheduler:Scheduler"

ALLOCATION = (
    Mutant(
        id="alloc.free-twice",
        bug="A02",
        statement="A block that one call frees twice stands twice in the free queue.",
        expects="kv.conservation",
        trigger="any sequence that ends",
        edits=(
            Edit(
                f"{MANAGER}.free",
                "for block_id in reversed(table.block_ids[table.num_released :]):",
                "blocks = table.block_ids[table.num_released :]\n"
                "        for block_id in (*blocks[-1:], *reversed(blocks)):",
            ),
            Edit(f"{POOL}.release", "if count <= 0:", "if count < 0:"),
            Edit(f"{POOL}.release", "if count == 1:", "if count <= 1:"),
        ),
    ),
    Mutant(
        id="alloc.pins-before-check",
        bug="A03",
        statement="Hit blocks are held before the check that the rest fits; a refusal leaks them.",
        expects="kv.conservation",
        trigger="a hit whose admission fails for want of blocks",
        edits=(
            Edit(
                f"{ADMISSION}._start_from",
                "    if status is not AllocStatus.OK:\n        return False\n",
                "    for block_id in hit.block_ids:\n"
                "        state.blocks.pool.hold(block_id)\n"
                "    if status is not AllocStatus.OK:\n"
                "        return False\n"
                "    for block_id in hit.block_ids:\n"
                "        state.blocks.pool.release(block_id)\n",
            ),
        ),
    ),
    Mutant(
        id="alloc.free-hits-counted",
        bug="A04",
        statement="Hits that lie in the free queue are counted as free for new blocks, too.",
        expects="life.no-crash",
        trigger="a hit on free blocks in a pool that fits exactly",
        edits=(
            Edit(
                f"{MANAGER}.can_allocate",
                "free = self.pool.num_free - sum(map(is_free, hit.block_ids))",
                "free = self.pool.num_free",
            ),
        ),
    ),
    Mutant(
        id="alloc.null-counted",
        bug="A05",
        statement="A swap-in asks for blocks in place of null entries, too.",
        expects="twin.lockstep",
        trigger="a swapped-out sequence past its window, in a pool that fits exactly",
        edits=(
            Edit(
                f"{MANAGER}.can_swap_in",
                "needed = self._num_blocks(num_slots) - num_null",
                "needed = self._num_blocks(num_slots)",
            ),
        ),
    ),
    Mutant(
        id="alloc.null-issued",
        bug="A06",
        statement="The free queue starts at block 0, the null block.",
        expects="kv.null-block",
        trigger="the first request",
        edits=(Edit(f"{POOL}.__init__", "first=1", "first=0"),),
    ),
    Mutant(
        id="alloc.last-block-unusable",
        bug="A07",
        statement="The null block is subtracted twice, so an exact fit is refused.",
        expects="sched.admission-feasible",
        trigger="a prompt that needs every block of the pool",
        edits=(
            Edit(
                f"{SCHEDULER}._check_feasible",
                "usable = state.cache.num_blocks - 1",
                "usable = state.cache.num_blocks - 2",
            ),
        ),
    ),
    Mutant(
        id="alloc.null-usable",
        bug="A07",
        statement="Admission counts the null block as usable and lets in what can never run.",
        expects="sched.admission-feasible",
        trigger="a prompt that needs one block more than there are",
        edits=(
            Edit(
                f"{SCHEDULER}._check_feasible",
                "usable = state.cache.num_blocks - 1",
                "usable = state.cache.num_blocks",
            ),
        ),
    ),
    Mutant(
        id="alloc.window-late",
        bug="A08",
        statement="Blocks outside the window are released one token late.",
        expects="kv.conservation",
        trigger="a sequence longer than the window",
        edits=(
            Edit(
                f"{MANAGER}.release_outside_window",
                "self._config.sliding_window + 1",
                "self._config.sliding_window",
            ),
        ),
    ),
    Mutant(
        id="alloc.window-early",
        bug="F09",
        statement="Blocks are released while the window still reaches one of their tokens.",
        expects="cow.isolation",
        trigger="a sequence longer than the window",
        edits=(
            Edit(
                f"{MANAGER}.release_outside_window",
                "self._config.sliding_window + 1",
                "self._config.sliding_window + 2",
            ),
        ),
    ),
    Mutant(
        id="alloc.abort-leaks",
        bug="A09",
        statement="An abort ends the sequence and keeps its blocks.",
        expects="kv.no-leak",
        trigger="an abort of a running request",
        edits=(
            Edit(
                f"{STATE}.end",
                "    else:\n        self.blocks.free(seq.seq_id)\n",
                "    elif status is not SequenceStatus.FINISHED_ABORTED:\n"
                "        self.blocks.free(seq.seq_id)\n",
            ),
        ),
    ),
    Mutant(
        id="alloc.abort-first-sample",
        bug="A09",
        statement="An abort reaches the first sample of a group, and the others run on.",
        expects="life.no-work-after-end",
        trigger="an abort of a request with n > 1 after its fork",
        edits=(
            Edit(
                f"{SCHEDULER}.abort_request",
                "for seq in group.sequences:",
                "for seq in group.sequences[:1]:",
            ),
        ),
    ),
    Mutant(
        id="alloc.preempt-leaks",
        bug="",
        statement="A preempted sequence forgets its table without freeing the blocks.",
        expects="kv.conservation",
        trigger="a preemption by recompute",
        edits=(
            Edit(
                f"{PLANNER}._preempt",
                "state.blocks.free(victim.seq_id)",
                "state.blocks._tables.pop(victim.seq_id)",
            ),
        ),
    ),
    Mutant(
        id="alloc.free-in-table-order",
        bug="A11",
        statement="A sequence's blocks are freed first to last, so heads are evicted before tails.",
        expects="twin.lockstep",
        trigger="a finished sequence of two blocks, and a later one",
        edits=(
            Edit(
                f"{MANAGER}.free",
                "reversed(table.block_ids[table.num_released :])",
                "table.block_ids[table.num_released :]",
            ),
        ),
    ),
    Mutant(
        id="alloc.takes-newest",
        bug="",
        statement="Blocks are taken from the back of the free queue: the newest cached goes first.",
        expects="twin.lockstep",
        trigger="any allocation",
        edits=(
            Edit(
                f"{POOL}.take",
                "block_id = self._free.take()",
                "block_id = list(self._free)[-1]\n    self._free.remove(block_id)",
            ),
        ),
    ),
    Mutant(
        id="alloc.hit-not-pinned",
        bug="A13",
        statement="The last block of a hit is not held by the sequence that hits it.",
        expects="kv.conservation",
        trigger="any hit",
        edits=(
            Edit(
                f"{MANAGER}.allocate",
                "for block_id in hit.block_ids:",
                "for block_id in hit.block_ids[:-1]:",
            ),
        ),
    ),
    Mutant(
        id="alloc.live-block-freed",
        bug="A14",
        statement="Dropping one holder sets the count to 0 and frees a block that others use.",
        expects="life.no-crash",
        trigger="a shared block, one of whose holders ends",
        edits=(
            Edit(
                f"{POOL}.release",
                "self.ref_counts[block_id] = count - 1",
                "self.ref_counts[block_id] = 0",
            ),
            Edit(f"{POOL}.release", "if count == 1:", "if count >= 1:"),
        ),
    ),
    Mutant(
        id="alloc.block-late",
        bug="A15",
        statement="The block-boundary test counts the tokens before the newest.",
        expects="kv.table-covers",
        trigger="a length that crosses a block edge by one token",
        edits=(
            Edit(
                f"{MANAGER}.try_append_slots",
                "-(-end // self._size)",
                "-(-(end - 1) // self._size)",
            ),
        ),
    ),
    Mutant(
        id="alloc.block-early",
        bug="A15",
        statement="A sequence takes its next block one token too early.",
        expects="kv.table-covers",
        trigger="a length that reaches a block edge",
        edits=(
            Edit(
                f"{MANAGER}.try_append_slots",
                "-(-end // self._size)",
                "-(-(end + 1) // self._size)",
            ),
        ),
    ),
    Mutant(
        id="alloc.freed-with-step-in-flight",
        bug="A17",
        statement="A sequence that ends in flight frees its blocks now, and again with the result.",
        expects="kv.conservation",
        trigger="an end while the next step is in flight",
        edits=(
            Edit(
                f"{STATE}.end",
                "        self.deferred[seq.seq_id] = seq\n",
                "        self.deferred[seq.seq_id] = seq\n        self.blocks.free(seq.seq_id)\n",
            ),
        ),
    ),
    Mutant(
        id="alloc.no-lookahead",
        bug="I01",
        statement="A running sequence gets no slots for the tokens of a draft.",
        expects="kv.table-covers",
        trigger="lookahead slots, near a block's end",
        edits=(
            Edit(
                f"{PLANNER}._extend",
                "end = start + num_tokens + self._lookahead",
                "end = start + num_tokens",
            ),
        ),
    ),
    Mutant(
        id="alloc.lookahead-twice",
        bug="I10",
        statement="A running sequence gets its lookahead slots twice.",
        expects="kv.table-covers",
        trigger="lookahead slots, near a block's end",
        edits=(
            Edit(
                f"{PLANNER}._extend",
                "end = start + num_tokens + self._lookahead",
                "end = start + num_tokens + 2 * self._lookahead",
            ),
        ),
    ),
    Mutant(
        id="alloc.host-leaks",
        bug="",
        statement="A swap-in forgets to release its host blocks.",
        expects="kv.conservation",
        trigger="a swap-in",
        edits=(
            Edit(
                f"{MANAGER}.swap_in",
                "self.free_host(seq_id)",
                "self._host_tables.pop(seq_id)",
            ),
        ),
    ),
    Mutant(
        id="alloc.deferred-never-freed",
        bug="",
        statement="Blocks of a sequence that ended in flight are never freed.",
        expects="kv.conservation",
        trigger="an end while the next step is in flight",
        edits=(
            Edit(
                "pagetwin.engine.closing:Closer._release_after",
                "                state.blocks.free(entry.seq_id)\n",
                "",
            ),
        ),
    ),
)
