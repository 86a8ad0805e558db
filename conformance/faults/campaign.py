"""Campaigns: a kind of fault at every place where it can strike, one run each."""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from pagetwin.conformance.faults.fault import (
    AbortAt,
    ClockJumps,
    Fault,
    PoolEmpty,
    ResultsLate,
    ResultTwice,
    RowFails,
    StepFails,
    SwapFails,
)
from pagetwin.conformance.faults.judge import judge
from pagetwin.conformance.faults.lab import Outcome, Setting, run


class CampaignReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a kind of fault did in one setting."""

    kind: str
    setting: str
    runs: int
    struck: int
    """Runs in which it struck; the last one of a kind that is counted up does not."""
    hit: int
    """Requests that it ended."""
    broken: tuple[str, ...]


def _counted(make: Callable[[int], Fault]) -> Callable[[Outcome, Setting], Iterator[Fault]]:
    """The first place, the second, ... as many as a sound run has steps."""
    return lambda sound, setting: (make(number) for number in range(sound.steps + 1))


def _each_request(
    make: Callable[[int, str], Fault],
) -> Callable[[Outcome, Setting], Iterator[Fault]]:
    """Likewise, for every request."""

    def faults(sound: Outcome, setting: Setting) -> Iterator[Fault]:
        for _, request in setting.requests:
            for number in range(sound.steps + 1):
                yield make(number, request.request_id)

    return faults


def _tokens(sound: Outcome, setting: Setting) -> Iterator[Fault]:
    for _, request in setting.requests:
        for number in range(request.sampling_params.max_tokens or 0):
            yield RowFails(number, request.request_id)


CAMPAIGN: dict[str, Callable[[Outcome, Setting], Iterable[Fault]]] = {
    "no free block": _counted(PoolEmpty),
    "execution fails": _counted(StepFails),
    "swap fails": _counted(SwapFails),
    "abort": _each_request(AbortAt),
    "abort in flight": _each_request(lambda number, name: AbortAt(number, name, in_flight=True)),
    "not a number": _tokens,
    "result twice": _counted(ResultTwice),
    "results late": lambda sound, setting: map(ResultsLate, range(12)),
    "clock jumps": lambda sound, setting: [ClockJumps()],
}
"""Kinds of faults by name, each with all its places in a setting."""


def run_campaign(setting: Setting, kind: str) -> CampaignReport:
    """Runs one kind of fault at every place."""
    sound = run(setting)
    runs = struck = hit = 0
    broken: list[str] = []
    for fault in CAMPAIGN[kind](sound, setting):
        runs += 1
        try:
            outcome = run(setting, fault)
            broken += judge(outcome, sound, fault)
            hit += len(outcome.errors)
        except Exception as error:
            # Whatever the engine raises is what we are after, not the end of the campaign.
            broken.append(f"{fault}: the engine raised {type(error).__name__}: {error}")
        struck += fault.struck
    return CampaignReport(
        kind=kind,
        setting=setting.name,
        runs=runs,
        struck=struck,
        hit=hit,
        broken=tuple(broken),
    )
