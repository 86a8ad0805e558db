"""Mutants of forced preemptions: of whom, when, and what they leave behind."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

PLANNER = "pagetwin.engine.planning:Planner"
BY_FORCE = f"{PLANNER}._preempt_as_asked"
CALL = "            self._preempt(seq, draft)\n"

FORCED_PREEMPTION = (
    Mutant(
        id="force.takes-another",
        bug="",
        statement="A forced preemption takes those whom nobody asked for.",
        expects="preempt.forced",
        trigger="a forced preemption with two running",
        edits=(Edit(BY_FORCE, "request_id in state", "request_id not in state"),),
    ),
    Mutant(
        id="force.one-sample-only",
        bug="",
        statement="Of a request's samples only the last one is preempted by force.",
        expects="preempt.forced",
        trigger="a forced preemption of two samples",
        edits=(Edit(BY_FORCE, CALL, f"{CALL}            break\n"),),
    ),
    Mutant(
        id="force.first-in-running-first",
        bug="",
        statement="Forced preemptions begin with the first in running, so that the last returns "
        "first.",
        expects="preempt.forced",
        trigger="a forced preemption of two sequences",
        edits=(Edit(BY_FORCE, "reversed(tuple(state.running))", "tuple(state.running)"),),
    ),
    Mutant(
        id="force.loses-a-token",
        bug="",
        statement="A sequence that is preempted by force forgets its last token.",
        expects="preempt.resume-complete",
        trigger="a forced preemption after the first token",
        edits=(
            Edit(
                BY_FORCE,
                CALL,
                f"{CALL}"
                "            if len(seq.token_ids) > seq.num_prompt_tokens:\n"
                "                seq.token_ids.pop()\n",
            ),
        ),
    ),
    Mutant(
        id="force.keeps-its-blocks",
        bug="",
        statement="The blocks of a sequence that is preempted by force are held on to.",
        expects="kv.conservation",
        trigger="a forced preemption",
        edits=(
            Edit(
                BY_FORCE,
                CALL,
                '            state.blocks.fork(seq.seq_id, f"{seq.seq_id} kept")\n' + CALL,
            ),
        ),
    ),
    Mutant(
        id="force.behind-those-who-wait",
        bug="",
        statement="A sequence that is preempted by force stands behind those preempted before it.",
        expects="twin.lockstep",
        trigger="a forced preemption while a preempted sequence waits",
        edits=(
            Edit(
                BY_FORCE,
                CALL,
                f"{CALL}"
                "            if seq.status is SequenceStatus.PREEMPTED:\n"
                "                state.waiting.remove(seq)\n"
                "                state.waiting.add_preempted(seq, yielding=True)\n",
            ),
        ),
    ),
    Mutant(
        id="force.stays-due",
        bug="",
        statement="A forced preemption that was carried out stays due.",
        expects="preempt.victim",
        trigger="a forced preemption of a request that returns",
        edits=(Edit(BY_FORCE, "    state.to_preempt.clear()\n", ""),),
    ),
    Mutant(
        id="force.while-in-flight",
        bug="",
        statement="A step in flight is not awaited before a forced preemption.",
        expects="preempt.forced",
        trigger="a forced preemption with a step in flight",
        edits=(
            Edit(
                f"{PLANNER}.plan",
                "state.to_preempt or not self._fits_without_preemption()",
                "not self._fits_without_preemption()",
            ),
        ),
    ),
    Mutant(
        id="force.outlives-its-request",
        bug="",
        statement="A forced preemption that is due strikes the next request of the same id, or "
        "keeps a plan waiting for nothing.",
        expects="twin.lockstep",
        trigger="an abort between a forced preemption and the next plan, a step being in flight",
        edits=(
            Edit(
                "pagetwin.engine.scheduler_state:SchedulerState.forget_if_ended",
                "        self.to_preempt.discard(group.request.request_id)\n",
                "",
            ),
        ),
    ),
)
