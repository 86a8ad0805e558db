"""Mutants of preemption and swapping: who gives way, what is lost, and how it comes back."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

MANAGER = "pagetwin.engine.block_manager:BlockManager"
ADMISSION = "pagetwin.engine.admission:Admission"
PLAN_DRAFT = "pagetwin.engine.plan_draft:PlanDraft"
PLANNER = "pagetwin.engine.planning:Planner"
CLOSER = "pagetwin.engine.closing:Closer"

PREEMPTION = (
    Mutant(
        id="preempt.prompt-only",
        bug="D01",
        statement="A sequence returns with its prompt alone; what it had generated is lost.",
        expects="preempt.resume-complete",
        trigger="a preemption after the first token",
        edits=(
            Edit(
                f"{PLAN_DRAFT}.introduce",
                "token_ids=tuple(seq.token_ids)",
                "token_ids=tuple(seq.token_ids[: seq.num_prompt_tokens])",
            ),
        ),
    ),
    Mutant(
        id="preempt.prefill-ends-at-prompt",
        bug="D02",
        statement="A returning sequence's prefill is taken to end with its original prompt.",
        expects="sched.samples-at-end",
        trigger="a preemption after the first token",
        edits=(
            Edit(
                f"{PLAN_DRAFT}.introduce",
                "samples = start + num_tokens == seq.num_tokens",
                "samples = start + num_tokens == seq.num_prompt_tokens",
            ),
        ),
    ),
    Mutant(
        id="preempt.drops-sampled-token",
        bug="D03",
        statement="The token that a re-prefill samples is thrown away.",
        expects="sched.samples-at-end",
        trigger="a preemption after the first token",
        edits=(
            Edit(
                f"{CLOSER}._advance",
                "        self._append(seq, result)\n    else:",
                "        if entry.num_scheduled_tokens == 1 or start < seq.num_prompt_tokens == "
                "len(seq.token_ids):\n"
                "            self._append(seq, result)\n    else:",
            ),
        ),
    ),
    Mutant(
        id="preempt.oldest-victim",
        bug="",
        statement="The first running sequence is preempted, not the last.",
        expects="twin.lockstep",
        trigger="a preemption with two running",
        edits=(Edit(f"{PLANNER}._victim", "return running[-1]", "return running[0]"),),
    ),
    Mutant(
        id="preempt.loses-place",
        bug="D20",
        statement="A preempted sequence goes behind all that wait.",
        expects="sched.order",
        trigger="a preemption while others wait",
        edits=(
            Edit(
                "pagetwin.engine.queues:AdmissionQueue.add_preempted",
                "self._push((0, ",
                "self._push((2, ",
            ),
        ),
    ),
    Mutant(
        id="preempt.returns-in-order-of-preemption",
        bug="D20",
        statement="Of several preempted sequences the one preempted first returns first.",
        expects="twin.lockstep",
        trigger="two preemptions before a return",
        edits=(
            Edit(
                "pagetwin.engine.queues:AdmissionQueue.add_preempted",
                "self._num_tickets if yielding else -self._num_tickets",
                "self._num_tickets",
            ),
        ),
    ),
    Mutant(
        id="preempt.stays-in-running",
        bug="D10",
        statement="A preempted sequence stays in the list of running ones.",
        expects="life.no-crash",
        trigger="a preemption",
        edits=(Edit(f"{PLANNER}._preempt", "    state.running.remove(victim)\n", ""),),
    ),
    Mutant(
        id="preempt.row-kept",
        bug="B02",
        statement="The executor is not told to forget a preempted sequence's row.",
        expects="preempt.clean",
        trigger="a preemption",
        edits=(Edit(f"{PLANNER}._preempt", "    state.drop_row(victim)\n", ""),),
    ),
    Mutant(
        id="preempt.keeps-computed",
        bug="D02",
        statement="A preempted sequence keeps the count of its computed tokens.",
        expects="preempt.resume-complete",
        trigger="a preemption by recompute",
        edits=(Edit(f"{PLANNER}._preempt", "        victim.num_computed_tokens = 0\n", ""),),
        equivalent=(
            "While a sequence is PREEMPTED nothing reads its count: planning visits RUNNING "
            "sequences only, a beam selection asks for the status first, and _start_from sets the "
            "count to the hit's length before the sequence runs again. Recompute is the only way "
            "back for it (swapping keeps the count on purpose)."
        ),
    ),
    Mutant(
        id="preempt.not-reintroduced",
        bug="D04",
        statement="A preempted sequence does not note that its row is void.",
        expects="preempt.resume-complete",
        trigger="a preemption",
        edits=(Edit(f"{PLANNER}._preempt", "    victim.needs_introduction = True\n", ""),),
        equivalent=(
            "The note is read in _extend alone, for sequences that run without having been "
            "admitted: new samples and beams. A preempted sequence comes back through _start_from "
            "or _swap_in, and both introduce it whatever the note says."
        ),
    ),
    Mutant(
        id="preempt.weight-kept",
        bug="N07",
        statement="A preempted sequence still counts as running.",
        expects="sched.counters",
        trigger="a preemption",
        edits=(Edit(f"{PLANNER}._preempt", "    state.num_running -= victim.weight\n", ""),),
    ),
    Mutant(
        id="preempt.admits-beside",
        bug="D08",
        statement="A step that preempts goes on to admit.",
        expects="preempt.justified",
        trigger="a preemption while others wait",
        edits=(
            Edit(
                f"{PLANNER}.plan",
                "    if not draft.preempted:\n        self._admission.admit(draft)\n",
                "    self._admission.admit(draft)\n",
            ),
        ),
    ),
    Mutant(
        id="preempt.while-in-flight",
        bug="D07",
        statement="A sequence is preempted while a step that uses it is in flight.",
        expects="preempt.justified",
        trigger="blocks run short with a step in flight",
        edits=(
            Edit(
                f"{PLANNER}.plan",
                "state.to_preempt or not self._fits_without_preemption()",
                "state.to_preempt",
            ),
        ),
    ),
    Mutant(
        id="preempt.no-relief",
        bug="D19",
        statement="A decode that gets no block is an error instead of a preemption.",
        expects="life.no-crash",
        trigger="blocks run short",
        edits=(
            Edit(
                f"{PLANNER}._extend",
                "        victim = self._victim()\n",
                "        raise RuntimeError('no free block')\n        victim = self._victim()\n",
            ),
        ),
    ),
    Mutant(
        id="preempt.last-one-raises",
        bug="D17",
        statement="A sequence that would have to preempt itself raises.",
        expects="life.no-crash",
        trigger="the last running sequence outgrows the free blocks",
        edits=(
            Edit(
                f"{PLANNER}._extend",
                "        if victim is seq:\n            return\n",
                "        if victim is seq:\n            raise RuntimeError('nobody to preempt')\n",
            ),
        ),
    ),
    Mutant(
        id="preempt.one-too-many",
        bug="D12",
        statement="The preemption loop does not see the blocks that its first victim gave back.",
        expects="twin.lockstep",
        trigger="a preemption with three running",
        edits=(
            Edit(
                f"{PLANNER}._extend",
                "        self._preempt(victim, draft)\n"
                "        if victim is seq:\n            return\n",
                "        self._preempt(victim, draft)\n"
                "        if victim is seq:\n            return\n"
                "        if state.running[-1] is not seq:\n"
                "            self._preempt(state.running[-1], draft)\n",
            ),
        ),
    ),
    Mutant(
        id="preempt.swap-loses-tail",
        bug="D16",
        statement="A swap-out leaves out a partly filled last block.",
        expects="swap.round-trip",
        trigger="a swap-out inside a block",
        edits=(
            Edit(
                f"{MANAGER}.swap_out",
                "for block_id in table.block_ids[: self._num_blocks(num_computed_tokens)]:",
                "for block_id in table.block_ids[: num_computed_tokens // self._size]:",
            ),
        ),
    ),
    Mutant(
        id="preempt.swap-one-place",
        bug="D16",
        statement="Every block that is swapped in goes to the first block's place.",
        expects="swap.round-trip",
        trigger="a swap-in of two blocks",
        edits=(
            Edit(
                f"{MANAGER}.swap_in",
                "copies.append(BlockCopy(host_id, table.block_ids[-1]))",
                "copies.append(BlockCopy(host_id, table.block_ids[0]))",
            ),
        ),
    ),
    Mutant(
        id="preempt.shared-block-saved-twice",
        bug="",
        statement="A block that two victims of one step share is copied out twice.",
        expects="swap.round-trip",
        trigger="two samples of one prompt swapped out in one step",
        edits=(
            Edit(
                f"{MANAGER}.swap_out",
                "host_id = self._copied_out.get(block_id)",
                "host_id = None",
            ),
        ),
    ),
    Mutant(
        id="preempt.stale-copy-reused",
        bug="",
        statement="A block copied out by an earlier step is taken for what it holds now.",
        expects="swap.round-trip",
        trigger="swap out, reuse the block, swap out again",
        edits=(Edit(f"{MANAGER}.start_step", "self._copied_out.clear()", "pass"),),
    ),
    Mutant(
        id="preempt.swapped-blocks-cached",
        bug="",
        statement="Blocks that were swapped in enter the cache again.",
        expects="cache.accounting",
        trigger="a swap-in of a full block, and the next one filled",
        edits=(
            Edit(
                f"{ADMISSION}._swap_in",
                "    state.blocks.skip_marking(seq.seq_id, start)\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="preempt.swaps-beams",
        bug="",
        statement="Beams are swapped out, though a search cannot bring them back alone.",
        expects="swap.round-trip",
        trigger="a beam search that runs short of blocks, with host blocks",
        edits=(Edit(f"{PLANNER}._preempt", "        and not victim.is_beam\n", ""),),
    ),
)
