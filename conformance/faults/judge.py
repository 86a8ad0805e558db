"""What must hold under a fault: the others unchanged, a clean end for the one hit, no trace."""

from collections.abc import Iterator
from typing import NamedTuple

from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.experiments.agreement import compare
from pagetwin.conformance.experiments.asking import NO_ANSWER, Answer
from pagetwin.conformance.faults.fault import AbortAt, AnyFault, RowFails
from pagetwin.conformance.faults.lab import AGAIN, Outcome
from pagetwin.conformance.history import header
from pagetwin.conformance.lockstep import replay_history
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.scenario import Scenario
from pagetwin.simulator.replica import Replica

_BITS = (
    Flag.CHOSEN_LOGPROB,
    Flag.INVARIANT_BATCH,
    Flag.INVARIANT_CHUNK,
    Flag.INVARIANT_CACHE_HISTORY,
    Flag.INVARIANT_PREEMPT,
)
"""What an engine must promise for log-probabilities to have equal bits whatever happens."""
_ENDS_OF_THE_HIT = ("error", "abort")
"""Reasons with which a request that was hit may end early."""


class Judge(NamedTuple):
    """Judges runs of one engine."""

    can: Capabilities
    dtype: str

    def judge(self, outcome: Outcome, sound: Outcome, scenario: Scenario) -> list[Violation]:
        """Everything that is wrong with a run under the scenario's fault; `sound` is one without
        it."""
        assert scenario.fault is not None
        fault = scenario.fault
        return [
            violation(fault.property_id, -1, f"{fault}: {what}")
            for what in self._wrong(outcome, sound, scenario, fault)
        ]

    def _wrong(
        self, outcome: Outcome, sound: Outcome, scenario: Scenario, fault: AnyFault
    ) -> Iterator[str]:
        yield from outcome.broken
        # A client that hung up need not be told of the end; everybody else must be.
        ends = (*_ENDS_OF_THE_HIT, "") if isinstance(fault, AbortAt) else _ENDS_OF_THE_HIT
        yield from self._answers(outcome, sound, ends, same_bits=self.can.has(*_BITS))
        yield from _leaks(outcome, scenario)
        if not fault.is_noticed and (outcome.plans, outcome.steps) != (sound.plans, sound.steps):
            yield "the engine plans otherwise"
        if isinstance(fault, RowFails):
            yield from _without_error(outcome)
        if outcome.accepted_twice:
            yield "a result took effect twice"
        yield from (str(one) for one in check_all(outcome.records))
        if fault.twin_follows and self.can.has(Flag.NOT_THE_TWIN):
            first = header(outcome.records)
            replayed = replay_history(outcome.records, Replica(first.cache, first.scheduler))
            if not replayed.equal:
                yield f"the twin does otherwise: {replayed.explain()}"

    def bits(self, outcome: Outcome, same_steps: Outcome) -> tuple[bool, list[str]]:
        """Whether two runs planned alike the first time, and what differs then in the answers of
        those that were not hit, bit by bit: equal steps have equal shapes."""
        if outcome.plans != same_steps.plans or not self.can.has(
            Flag.CHOSEN_LOGPROB, Flag.INVARIANT_RUN
        ):
            return False, []
        first = {name for name in same_steps.answers if not _request(name).endswith(AGAIN)}
        neighbours = [name for name in sorted(first) if _request(name) not in outcome.hit]
        wrong = [
            f"{name} differs from a run in which the same steps were made: {difference}"
            for name in neighbours
            if (
                difference := compare(
                    same_steps.answers[name],
                    outcome.answers.get(name, NO_ANSWER),
                    dtype=self.dtype,
                    same_bits=True,
                    is_greedy=True,
                ).difference
            )
        ]
        return bool(neighbours), wrong

    def _answers(
        self, outcome: Outcome, sound: Outcome, early_ends: tuple[str, ...], *, same_bits: bool
    ) -> Iterator[str]:
        for name, expected in sound.answers.items():
            answer = outcome.answers.get(name, NO_ANSWER)
            was_hit = _request(name) in outcome.hit
            if was_hit and answer.reason in early_ends:
                expected = _beginning(expected, len(answer.token_ids), answer.reason)
            difference = compare(
                expected, answer, dtype=self.dtype, same_bits=same_bits, is_greedy=True
            ).difference
            if difference is not None:
                yield f"{name} was {'' if was_hit else 'not '}hit, and differs: {difference}"
        for name in sorted(outcome.answers.keys() - sound.answers.keys()):
            yield f"{name} answers, which does not without the fault"


def _beginning(answer: Answer, length: int, reason: str) -> Answer:
    return Answer(answer.token_ids[:length], answer.logprobs[:length], answer.tops[:length], reason)


def _without_error(outcome: Outcome) -> Iterator[str]:
    """Requests whose logits were NaN, and that nobody told so."""
    failed = {_request(name) for name, one in outcome.answers.items() if one.reason == "error"}
    for request_id in sorted(outcome.hit - failed):
        yield f"no sample of {request_id} ends with an error"


def _leaks(outcome: Outcome, scenario: Scenario) -> Iterator[str]:
    if outcome.reset is None:
        return
    if not outcome.reset.done:
        yield "at the end the cache cannot be reset: somebody still holds blocks"
    levels = {
        "num_waiting": 0,
        "num_running": 0,
        "num_swapped": 0,
        "num_cached_blocks": 0,
        "num_free_blocks": scenario.cache.num_blocks - 1,
        "num_free_host_blocks": scenario.cache.num_host_blocks,
    }
    for level, expected in levels.items():
        if (found := getattr(outcome.reset.counters, level)) != expected:
            yield f"{level} is {found} at the end, not {expected}"
    if outcome.num_kept > 2:
        yield f"the executor keeps {outcome.num_kept} rows and requests, not one of each"


def _request(seq_id: str) -> str:
    return seq_id.rpartition("/")[0]
