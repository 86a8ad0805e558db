"""Properties of an engine under which, or beside which, something goes wrong."""

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property

STRUCK = "faults that struck"
ENDED = "requests that a fault ended"
_NEEDS = (
    Flag.TOKEN_IDS,
    Flag.TOKEN_PROMPT,
    Flag.IGNORE_EOS,
    Flag.STEP_TRACE,
    Flag.COUNTERS,
    Flag.POLICY,
    Flag.STEP_CONTROL,
    Flag.RESET_CACHE,
)
_INJECTED = (*_NEEDS, Flag.FAULT_INJECTION)
_UNNOTICED = "nobody's answer changes and nothing is left behind."
_DECIDES_NOTHING = "no plan changes, nobody's answer does, and nothing is left behind."
_OTHERS = (
    "ends it with an error or a part of its answer; nobody else's answer changes and nothing is "
    "left behind."
)


def _row(
    property_id: str, statement: str, *goals: str, needs: tuple[Flag, ...] = _INJECTED
) -> Property:
    return Property(
        id=property_id, statement=statement, needs=needs, level=Level.CONTROL, goals=goals
    )


PROPERTIES = (
    _row(
        "fault.allocation",
        "When the pool gives out no block while some plan is made, or every few plans, "
        f"{_UNNOTICED}",
        STRUCK,
        "plans that a fault changed",
    ),
    _row(
        "fault.execution",
        "A step that cannot be executed ends the requests in it with its error; nobody else's "
        "answer changes, then or later, and nothing is left behind.",
        STRUCK,
        ENDED,
    ),
    _row(
        "fault.memory",
        "A step that finds no memory for one of the tensors it makes, the first or any other, ends "
        "the requests in it with its error; nobody else's answer changes, then or later, and "
        "nothing is left behind.",
        STRUCK,
        ENDED,
        needs=(*_INJECTED, Flag.READ_KV),
    ),
    _row(
        "fault.swap-copy",
        "Blocks that cannot be moved to or from the host end the requests of that step with its "
        "error; nobody else's answer changes, then or later, and nothing is left behind.",
        STRUCK,
        ENDED,
    ),
    _row(
        "fault.nan-logits",
        "A request whose logits are NaN ends with reason error after the tokens before; its "
        "neighbours answer, bit by bit where steps are alike, as without it, and nothing is left "
        "behind.",
        STRUCK,
        ENDED,
        "neighbours that went on",
    ),
    _row(
        "fault.abort",
        f"An abort at any step, before or while it is in flight, {_OTHERS}",
        STRUCK,
        "aborts while in flight",
        needs=(*_NEEDS, Flag.CANCEL),
    ),
    _row(
        "preempt.parity",
        "A request that is forced to be preempted, before any step or while it is in flight, by "
        "recompute or by swap, answers as without that, bit by bit where that is promised; "
        f"{_UNNOTICED}",
        STRUCK,
        "forced recompute preemptions",
        "forced swap preemptions",
        "forced preemptions asked for in flight",
        needs=(*_NEEDS, Flag.FORCE_PREEMPT),
    ),
    _row(
        "fault.duplicated-result",
        f"A result that is handed in a second time is refused; {_DECIDES_NOTHING}",
        STRUCK,
    ),
    _row(
        "fault.late-result",
        f"When results come late or at once, by chance, {_UNNOTICED}",
        STRUCK,
        needs=_NEEDS,
    ),
    _row("fault.clock-jump", f"When the clock jumps back and forth, {_DECIDES_NOTHING}", STRUCK),
)
