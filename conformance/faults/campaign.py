"""Campaigns: a kind of fault at every place where it can strike, one run each."""

from collections.abc import Callable, Iterator, Mapping

import msgspec

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.faults.fault import (
    AbortAt,
    AllocationFails,
    AnyFault,
    ClockJumps,
    PoolEmpty,
    PreemptedAt,
    ResultsLate,
    ResultTwice,
    RowFails,
    StepFails,
    SwapFails,
)
from pagetwin.conformance.faults.judge import Judge
from pagetwin.conformance.faults.lab import Outcome, run
from pagetwin.conformance.faults.settings import settings
from pagetwin.conformance.goals import count_goals
from pagetwin.conformance.properties import CATALOGUE, Violation, violation
from pagetwin.conformance.scenario import Scenario
from pagetwin.engine.request import Request
from pagetwin.engine.trace import PlanRecord, Record, ResultRecord

NUM_LATE_SEEDS = 12
SHORT_EVERY = (5, 7, 11)
"""Plans from one without blocks to the next."""


class CampaignReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a kind of fault did in one setting."""

    kind: str
    """Its property."""
    setting: str
    runs: int
    struck: int
    """Runs in which it struck; the last one of a kind that is counted up does not."""
    hit: int
    """Requests that it ended."""
    broken: tuple[str, ...]


class FaultRun(msgspec.Struct, frozen=True, kw_only=True):
    """One fault at one place, judged."""

    scenario: Scenario
    struck: bool
    num_ended: int
    """Requests that ended with an error."""
    goals: dict[str, int]
    records: tuple[Record, ...]
    violations: tuple[Violation, ...]


class Campaign:
    """Faults of one engine; what it does without any is found out once for each setting."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._judge = Judge(adapter.capabilities(), adapter.describe().dtype)
        self._sound: dict[Scenario, Outcome] = {}

    def settings(self) -> dict[str, Scenario]:
        return settings(self._judge.can)

    def places(self, kind: str, setting: Scenario) -> Iterator[AnyFault]:
        """The kind's faults in that setting, each where it can strike."""
        return _PLACES[kind](self.sound(setting), setting)

    def sound(self, setting: Scenario) -> Outcome:
        """What the engine does without a fault."""
        setting = msgspec.structs.replace(setting, fault=None)
        if setting not in self._sound:
            self._sound[setting] = run(self._adapter, setting)
        return self._sound[setting]

    def judge(self, scenario: Scenario) -> FaultRun:
        """Runs the scenario under its fault and holds it against itself without. Raises as
        lab.run."""
        fault = scenario.fault
        assert fault is not None
        sound = self.sound(scenario)
        outcome = run(self._adapter, scenario)
        found = self._judge.judge(outcome, sound, scenario)
        goals = _goals(outcome, sound)
        if isinstance(fault, RowFails) and outcome.struck:
            same_steps, wrong = self._judge.bits(outcome, self._ended_there(scenario, fault))
            goals["neighbours compared bit by bit"] = int(same_steps)
            found += [violation(fault.property_id, -1, f"{fault}: {what}") for what in wrong]
        return FaultRun(
            scenario=scenario,
            struck=outcome.struck > 0,
            num_ended=goals["requests that a fault ended"],
            goals=goals,
            records=tuple(outcome.records),
            violations=tuple(found),
        )

    def _ended_there(self, scenario: Scenario, fault: RowFails) -> Outcome:
        """The sound run in which the request has no more tokens to say at that place."""

        def cut(request: Request) -> Request:
            if request.request_id != fault.request_id:
                return request
            params = msgspec.structs.replace(request.sampling_params, max_tokens=fault.number + 1)
            return msgspec.structs.replace(request, sampling_params=params)

        requests = tuple(
            msgspec.structs.replace(one, request=cut(one.request)) for one in scenario.requests
        )
        return self.sound(msgspec.structs.replace(scenario, requests=requests))


def run_campaign(campaign: Campaign, name: str, kind: str) -> CampaignReport:
    """Runs one kind of fault at every place of the named setting."""
    setting = campaign.settings()[name]
    faults = campaign.places(kind, setting)
    runs = [campaign.judge(msgspec.structs.replace(setting, fault=one)) for one in faults]
    return CampaignReport(
        kind=kind,
        setting=name,
        runs=len(runs),
        struck=sum(one.struck for one in runs),
        hit=sum(one.num_ended for one in runs),
        broken=tuple(found.message for one in runs for found in one.violations),
    )


_COUNTED = (
    "aborts while in flight",
    "forced recompute preemptions",
    "forced swap preemptions",
    "forced preemptions asked for in flight",
)
"""Goals that the records tell."""


def _goals(outcome: Outcome, sound: Outcome) -> dict[str, int]:
    """How often each of the faults' goals happened in a run."""
    ended = {
        name.rpartition("/")[0]
        for name, answer in outcome.answers.items()
        if answer.reason == "error"
    }
    counts = count_goals(outcome.first_records)
    return {
        **{goal: counts[goal] for goal in _COUNTED},
        "faults that struck": int(outcome.struck > 0),
        "requests that a fault ended": len(ended),
        "neighbours that went on": _num_that_went_on(outcome),
        "plans that a fault changed": int(outcome.plans != sound.plans),
    }


def _num_that_went_on(outcome: Outcome) -> int:
    """Sequences that drew a token in the step in which another failed, or later."""
    results = [one for one in outcome.first_records if isinstance(one, ResultRecord)]
    first = next((i for i, one in enumerate(results) if one.failed), len(results))
    return len({name for one in results[first:] for name in one.sampled})


Places = Callable[[Outcome, Scenario], Iterator[AnyFault]]


def _counted(make: Callable[[int], AnyFault]) -> Places:
    """The first place, the second, ... as many as a sound run has steps."""
    return lambda sound, setting: (make(number) for number in range(sound.steps + 1))


def _shortages(sound: Outcome, setting: Scenario) -> Iterator[AnyFault]:
    """Each plan by itself, and then plans again and again, as often as all still get ahead."""
    yield from (PoolEmpty(number=number) for number in range(sound.steps + 1))
    yield from (PoolEmpty(number=every, every=every) for every in SHORT_EVERY)


def _allocations(sound: Outcome, setting: Scenario) -> Iterator[AnyFault]:
    """Each execution's first one, and one that is farther and farther behind it, until one is past
    all that a small model makes in a step."""
    for number in range(sound.steps):
        for allocation in dict.fromkeys((0, 3 * 2 ** (number % 6))):
            yield AllocationFails(number=number, allocation=allocation)


def _swaps(sound: Outcome, setting: Scenario) -> Iterator[AnyFault]:
    """As many as there are the first time; both times are alike but for what is cached."""
    plans = [one.plan for one in sound.records if isinstance(one, PlanRecord)]
    swaps = sum(bool(plan.swap_outs or plan.swap_ins) for plan in plans)
    yield from (SwapFails(number=number) for number in range(swaps // 2))


def _tokens(sound: Outcome, setting: Scenario) -> Iterator[AnyFault]:
    for request in setting.requests_by_id().values():
        for number in range(request.sampling_params.max_tokens or 0):
            yield RowFails(number=number, request_id=request.request_id)


def _aborts(sound: Outcome, setting: Scenario) -> Iterator[AnyFault]:
    for name in setting.requests_by_id():
        for number in range(sound.steps + 1):
            for in_flight in (False, True):
                yield AbortAt(number=number, request_id=name, in_flight=in_flight)


def _preemptions(sound: Outcome, setting: Scenario) -> Iterator[AnyFault]:
    """Of each request from just before its first step to just behind its last: it may run there."""
    for name in setting.requests_by_id():
        own = [
            plan.step
            for plan in sound.plans
            if any(entry.seq_id.startswith(f"{name}/") for entry in plan.scheduled)
        ]
        for number in range(max(0, own[0] - 1), own[-1] + 2):
            for in_flight in (False, True):
                yield PreemptedAt(number=number, request_id=name, in_flight=in_flight)


def _late(sound: Outcome, setting: Scenario) -> Iterator[AnyFault]:
    """Without asynchronous steps no result can be late."""
    if setting.scheduler.async_scheduling:
        yield from (ResultsLate(seed=seed) for seed in range(NUM_LATE_SEEDS))


_PLACES: Mapping[str, Places] = {
    PoolEmpty.property_id: _shortages,
    StepFails.property_id: _counted(lambda number: StepFails(number=number)),
    AllocationFails.property_id: _allocations,
    SwapFails.property_id: _swaps,
    RowFails.property_id: _tokens,
    AbortAt.property_id: _aborts,
    PreemptedAt.property_id: _preemptions,
    ResultTwice.property_id: _counted(lambda number: ResultTwice(number=number)),
    ResultsLate.property_id: _late,
    ClockJumps.property_id: lambda sound, setting: iter([ClockJumps()]),
}
KINDS = tuple(_PLACES)
"""Properties, each with a kind of fault of its own."""


def supported_kinds(adapter: Adapter) -> list[str]:
    """Those that the engine lets one try."""
    can = adapter.capabilities()
    return [kind for kind in KINDS if not can.missing(CATALOGUE[kind].needs)]
