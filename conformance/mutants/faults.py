"""Mutants of what the engine does when something under it goes wrong."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

CORE = "pagetwin.engine.core:EngineCore"
CLOSER = "pagetwin.engine.closing:Closer"
PLANNER = "pagetwin.engine.planning:Planner"
STATE = "pagetwin.engine.scheduler_state:SchedulerState"

FAULTS = (
    Mutant(
        id="fault.failed-step-counts",
        bug="",
        statement="A step that failed counts as computed: its requests go on, its blocks are "
        "cached.",
        expects="fault.execution",
        trigger="an execution that fails in a prefill",
        edits=(
            Edit(
                f"{CORE}._end_those_in",
                "return tuple(name for name in names if self.abort_request(name))",
                "return tuple(names)[:0]",
            ),
        ),
    ),
    Mutant(
        id="fault.swapped-in-a-failed-step",
        bug="",
        statement="A request that a failed step should have saved to the host comes back with "
        "what lies there.",
        expects="fault.swap-copy",
        trigger="a swap-out that fails",
        edits=(
            Edit(
                f"{CORE}._end_those_in",
                'if one.mode == "swap"]',
                'if one.mode != "swap"]',
            ),
        ),
    ),
    Mutant(
        id="fault.plans-on-a-failed-step",
        bug="D14",
        statement="A step is planned on top of one that has failed.",
        expects="fault.execution",
        trigger="asynchronous steps, and an execution that fails",
        edits=(
            Edit(
                f"{CORE}.start_step",
                "if self._in_flight and isinstance(",
                "if not self._in_flight and isinstance(",
            ),
        ),
    ),
    Mutant(
        id="fault.only-the-first-ends",
        bug="",
        statement="Of the requests of a failed step only the first ends.",
        expects="fault.execution",
        trigger="an execution of two requests that fails",
        edits=(
            Edit(
                f"{CORE}._end_those_in",
                "names = dict.fromkeys(",
                "names = list(",
            ),
            Edit(f"{CORE}._end_those_in", "for name in names if", "for name in names[:1] if"),
        ),
    ),
    Mutant(
        id="fault.newest-result-first",
        bug="D07",
        statement="Of two steps in flight the newer one takes effect first.",
        expects="fault.late-result",
        trigger="two steps in flight",
        edits=(Edit(f"{CORE}.finish_step", "self._in_flight.popleft()", "self._in_flight.pop()"),),
    ),
    Mutant(
        id="fault.result-counts-twice",
        bug="D07",
        statement="A result is taken whatever step is in flight.",
        expects="fault.duplicated-result",
        trigger="a result that comes twice",
        edits=(
            Edit(
                f"{CLOSER}._check",
                "if not in_flight or in_flight[0] is not plan or result.step != plan.step:",
                "if result.step != plan.step:",
            ),
            Edit(
                f"{CLOSER}.close",
                "    state.in_flight.popleft()\n",
                "    state.in_flight and state.in_flight.popleft()\n",
            ),
        ),
        also_tried=("faults",),
    ),
    Mutant(
        id="fault.nan-ends-all",
        bug="",
        statement="A row without a token ends the requests behind it in the step as well.",
        expects="fault.nan-logits",
        trigger="a row that fails beside others",
        edits=(
            Edit(
                f"{CLOSER}._append",
                "if seq_id in result.failed:",
                "if result.failed and min(result.failed) <= seq_id:",
            ),
            Edit(
                f"{CLOSER}._append",
                "result.failed[seq_id]))",
                "result.failed[min(result.failed)]))",
            ),
        ),
        also_tried=("faults",),
    ),
    Mutant(
        id="fault.nan-leaks-a-row",
        bug="",
        statement="What ends with an error keeps its row in the executor.",
        expects="fault.nan-logits",
        trigger="a row that fails",
        edits=(
            Edit(
                f"{STATE}.drop_row",
                "if seq.has_row:",
                "if seq.has_row and seq.status is not SequenceStatus.FINISHED_ERROR:",
            ),
        ),
        also_tried=("faults",),
    ),
    Mutant(
        id="fault.refusal-skips-the-victim",
        bug="",
        statement="Whoever made a victim give up its blocks gets nothing in that step.",
        expects="fault.allocation",
        trigger="no free block when a sequence grows",
        edits=(
            Edit(
                f"{PLANNER}._extend",
                "        if victim is seq:\n            return\n",
                "        return\n",
            ),
        ),
        also_tried=("faults",),
    ),
    Mutant(
        id="fault.abort-keeps-host-blocks",
        bug="A09",
        statement="A request that is aborted or ends while swapped out keeps its host blocks.",
        expects="fault.abort",
        trigger="an abort of a swapped sequence",
        edits=(
            Edit(
                f"{STATE}.end",
                "    self.blocks.free_host(seq.seq_id)\n",
                "    self.blocks.free_host(seq.group.request.request_id)\n",
            ),
        ),
        also_tried=("faults",),
    ),
    Mutant(
        id="fault.clock-decides",
        bug="",
        statement="No step is planned while the clock shows a time before the start.",
        expects="fault.clock-jump",
        trigger="a clock that goes back",
        edits=(
            Edit(
                f"{CORE}.start_step",
                "plan = self.scheduler.schedule()",
                "plan = self.scheduler.schedule() if start >= 0 else None",
            ),
        ),
    ),
)
