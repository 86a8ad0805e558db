"""What must hold under a fault: the others unchanged, a clean end for the one hit, no trace."""

from collections.abc import Iterator

from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.faults.fault import Fault, ResultTwice
from pagetwin.conformance.faults.lab import Outcome
from pagetwin.conformance.history import header
from pagetwin.conformance.lockstep import replay_history
from pagetwin.simulator.replica import Replica

AGAIN = "-again"
"""What the lab appends to a request's name when the fault is gone."""


def judge(outcome: Outcome, sound: Outcome, fault: Fault) -> list[str]:
    """Everything that is wrong with a run under the fault; `sound` is one without any."""
    return [f"{fault}: {what}" for what in _wrong(outcome, sound, fault)]


def _wrong(outcome: Outcome, sound: Outcome, fault: Fault) -> Iterator[str]:
    yield from outcome.broken
    yield from _tokens(outcome, sound, fault)
    yield from _leaks(outcome)
    if isinstance(fault, ResultTwice) and fault.accepted:
        yield "a result took effect twice"
    yield from (str(one) for one in check_all(outcome.records))
    if not fault.twin_would_follow:
        return
    first = header(outcome.records)
    replayed = replay_history(outcome.records, Replica(first.cache, first.scheduler))
    if not replayed.equal:
        yield f"the twin does otherwise: {replayed.explain()}"


def _tokens(outcome: Outcome, sound: Outcome, fault: Fault) -> Iterator[str]:
    for seq_id, expected in sound.tokens.items():
        request_id = seq_id.rpartition("/")[0]
        tokens = outcome.tokens.get(seq_id, [])
        if request_id not in fault.hit:
            if tokens != expected:
                yield f"{seq_id} was not hit, and says {tokens}, not {expected}"
            if outcome.ends.get(seq_id) != sound.ends[seq_id]:
                yield f"{seq_id} was not hit, and ends with {outcome.ends.get(seq_id)!r}"
        elif tokens != expected[: len(tokens)]:
            yield f"{seq_id} was hit, and says {tokens} before that, not {expected}"
    for request_id, error in outcome.errors.items():
        if request_id not in fault.hit:
            yield f"{request_id} was not hit, and ends with the error {error!r}"
        elif not error:
            yield f"{request_id} ends with an error that says nothing"


def _leaks(outcome: Outcome) -> Iterator[str]:
    before, after = outcome.before, outcome.after
    assert before is not None
    assert after is not None
    for level in (
        "num_waiting",
        "num_running",
        "num_swapped",
        "num_free_blocks",
        "num_free_host_blocks",
        "num_cached_blocks",
    ):
        if getattr(after, level) != getattr(before, level):
            yield f"{level} is {getattr(after, level)} at the end, not {getattr(before, level)}"
    if outcome.rows_left > 2:
        yield f"the executor keeps {outcome.rows_left} rows and requests, not one of each"
