"""Mutants of sharing: copy-on-write, forks, and the moves that an executor makes."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

MANAGER = "pagetwin.engine.block_manager:BlockManager"
EXECUTOR = "pagetwin.engine.fingerprint:FingerprintExecutor"

SHARING = (
    Mutant(
        id="cow.no-copy",
        bug="B01",
        statement="A second holder writes into the shared tail block instead of copying it.",
        expects="kv.exclusive-write",
        trigger="n = 2, a prompt that ends inside a block",
        edits=(
            Edit(
                f"{MANAGER}.try_append_slots",
                "if counts[blocks[i]] > 1]",
                "if counts[blocks[i]] > 2]",
            ),
        ),
    ),
    Mutant(
        id="cow.copies-own-block",
        bug="",
        statement="The last holder of a block copies it, too, before it writes.",
        expects="cow.isolation",
        trigger="a chunk, or a token, that crosses a block edge",
        edits=(
            Edit(
                f"{MANAGER}.try_append_slots",
                "if counts[blocks[i]] > 1]",
                "if counts[blocks[i]] > 0]",
            ),
        ),
    ),
    Mutant(
        id="cow.copies-backwards",
        bug="",
        statement="Source and destination of a copy are exchanged.",
        expects="cow.copies",
        trigger="any copy",
        edits=(
            Edit(
                f"{MANAGER}._replace",
                "return BlockCopy(shared, blocks[index])",
                "return BlockCopy(blocks[index], shared)",
            ),
        ),
    ),
    Mutant(
        id="cow.keeps-the-old-block",
        bug="",
        statement="A writer that copied a block stays a holder of the old one.",
        expects="kv.conservation",
        trigger="any copy",
        edits=(Edit(f"{MANAGER}._replace", "    self.pool.release(shared)\n", ""),),
    ),
    Mutant(
        id="cow.fork-skips-tail",
        bug="B01",
        statement="A fork shares the unfilled tail block without counting the new holder.",
        expects="life.no-crash",
        trigger="any fork",
        edits=(
            Edit(
                f"{MANAGER}.fork",
                "parent.block_ids[parent.num_released :]",
                "parent.block_ids[parent.num_released : -1]",
            ),
        ),
    ),
    Mutant(
        id="cow.fork-holds-null",
        bug="A01",
        statement="A fork goes through the raw table and holds its null entries.",
        expects="life.no-crash",
        trigger="a fork of a sequence past its window",
        edits=(
            Edit(
                f"{MANAGER}.fork",
                "parent.block_ids[parent.num_released :]",
                "parent.block_ids",
            ),
        ),
    ),
    Mutant(
        id="cow.window-forgotten-by-fork",
        bug="A01",
        statement="A fork forgets how many of its entries the window has released.",
        expects="life.no-crash",
        trigger="a fork of a sequence past its window",
        edits=(
            Edit(
                f"{MANAGER}.fork",
                "parent.block_ids.copy(), parent.num_released, parent.num_marked",
                "parent.block_ids.copy(), 0, parent.num_marked",
            ),
        ),
    ),
    Mutant(
        id="cow.fork-is-the-parents-table",
        bug="B02",
        statement="A fork's table is the parent's own list, so both grow together.",
        expects="kv.takes-free",
        trigger="any fork",
        edits=(Edit(f"{MANAGER}.fork", "parent.block_ids.copy()", "parent.block_ids"),),
    ),
    Mutant(
        id="cow.fork-order",
        bug="",
        statement="Samples run in the reverse of their order.",
        expects="twin.lockstep",
        trigger="n > 2",
        edits=(
            Edit(
                "pagetwin.engine.closing:Closer._fork",
                "state.running[place:place] = children",
                "state.running[place:place] = children[::-1]",
            ),
        ),
    ),
    Mutant(
        id="cow.one-child-too-few",
        bug="L11",
        statement="A group forks into one sample less than was asked for.",
        expects="cow.fork-once",
        trigger="n > 1",
        edits=(
            Edit(
                "pagetwin.engine.closing:Closer._fork",
                "range(1, group.request.num_samples)",
                "range(1, max(2, group.request.num_samples - 1))",
            ),
        ),
    ),
    Mutant(
        id="exec.copies-late",
        bug="",
        statement="Copies run after the step's writes.",
        expects="iso.history-independence",
        trigger="any copy",
        edits=(
            Edit(f"{EXECUTOR}.execute", "    _copy(plan.copies, self._slots, self._slots)\n", ""),
            Edit(
                f"{EXECUTOR}.execute",
                "    sampled: dict[str, int] = {}\n",
                "    _copy(plan.copies, self._slots, self._slots)\n"
                "    sampled: dict[str, int] = {}\n",
            ),
        ),
    ),
    Mutant(
        id="exec.swaps-in-first",
        bug="",
        statement="Copies run before the swap-ins whose blocks they may read.",
        expects="iso.history-independence",
        trigger="a copy of a block that is swapped in by the same step",
        edits=(
            Edit(
                f"{EXECUTOR}.execute",
                "    _copy(plan.swap_ins, self._host_slots, self._slots)\n"
                "    _copy(plan.copies, self._slots, self._slots)\n",
                "    _copy(plan.copies, self._slots, self._slots)\n"
                "    _copy(plan.swap_ins, self._host_slots, self._slots)\n",
            ),
        ),
        equivalent=(
            "Swapped-in blocks are fresh ones that belong to one sequence (docs/policy.md P3.3b), "
            "so no copy of the same plan reads them; copies' destinations are fresh blocks, too, "
            "so nothing that a swap-in writes is written by a copy. The two lists touch disjoint "
            "blocks and commute."
        ),
    ),
    Mutant(
        id="exec.swap-out-late",
        bug="D16",
        statement="Blocks are swapped out after others were swapped or copied into their places.",
        expects="iso.history-independence",
        trigger="a swap-out whose blocks the same step reuses",
        edits=(
            Edit(
                f"{EXECUTOR}.execute",
                "    _copy(plan.swap_outs, self._slots, self._host_slots)\n",
                "",
            ),
            Edit(
                f"{EXECUTOR}.execute",
                "    sampled: dict[str, int] = {}\n",
                "    _copy(plan.swap_outs, self._slots, self._host_slots)\n"
                "    sampled: dict[str, int] = {}\n",
            ),
        ),
    ),
    Mutant(
        id="exec.copies-one-slot-short",
        bug="",
        statement="A copy leaves out the last slot of its block.",
        expects="iso.history-independence",
        trigger="a swap of a full block",
        edits=(
            Edit(
                "pagetwin.engine.fingerprint:_copy",
                "destination[copy.destination] = source[copy.source]",
                "destination[copy.destination, :-1] = source[copy.source, :-1]",
            ),
        ),
    ),
    Mutant(
        id="exec.table-appended",
        bug="D04",
        statement="The blocks of a sequence that returns are appended to its old row.",
        expects="iso.history-independence",
        trigger="a return after a preemption",
        edits=(
            Edit(f"{EXECUTOR}.follow", "        del self._rows[seq_id]\n", "        pass\n"),
            Edit(
                f"{EXECUTOR}.follow",
                "    for new in plan.introduced:\n",
                "    for new in plan.introduced:\n"
                "        old = getattr(self._rows.get(new.seq_id), 'block_ids', [])\n",
            ),
            Edit(f"{EXECUTOR}.follow", "list(new.block_ids)", "[*old, *new.block_ids]"),
        ),
    ),
    Mutant(
        id="exec.replaced-ignored",
        bug="",
        statement="The executor keeps reading the old block of an entry that was replaced.",
        expects="iso.history-independence",
        trigger="a copy-on-write copy of a block that diverges",
        edits=(
            Edit(
                f"{EXECUTOR}.follow",
                "            row.block_ids[index] = block_id\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        id="exec.stale-tokens",
        bug="D06",
        statement="A sequence that returns is computed from the token list of its old row.",
        expects="life.no-crash",
        trigger="a return after a preemption of which the executor was told nothing else",
        edits=(
            Edit(
                f"{EXECUTOR}.follow",
                "list(new.token_ids)",
                "list(new.token_ids[: request.num_prompt_tokens])",
            ),
        ),
    ),
    Mutant(
        id="exec.window-edge",
        bug="F09",
        statement="The window reaches one token too far back.",
        expects="iso.history-independence",
        trigger="a window whose far edge is a block edge",
        edits=(
            Edit(
                f"{EXECUTOR}._read",
                "start = max(0, end - self._window) if self._window else 0",
                "start = max(0, end - self._window - 1) if self._window else 0",
            ),
        ),
    ),
    Mutant(
        id="exec.reads-whole-blocks",
        bug="F02",
        statement="What lies behind a sequence's last token in its last block is read, too.",
        expects="iso.history-independence",
        trigger="a partly filled block that others used before",
        edits=(
            Edit(
                f"{EXECUTOR}._read",
                "return _mix(int((visible * self._weights[start:end]).sum()))",
                "return _mix(int((visible * self._weights[start:end]).sum()) "
                "+ int(self._slots[blocks[-1], -1]))",
            ),
        ),
    ),
    Mutant(
        id="exec.position-restarts",
        bug="C20",
        statement="Positions start at 0 with the tokens behind a hit.",
        expects="iso.history-independence",
        trigger="a prefix hit",
        edits=(
            Edit(
                f"{EXECUTOR}._write",
                "token = (position << 32) + row.token_ids[position]",
                "token = (position - start << 32) + row.token_ids[position]",
            ),
        ),
    ),
)
