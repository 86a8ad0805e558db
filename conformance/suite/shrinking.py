"""What a run found, made small: each property's scenario shrunk on the engine that broke it."""

import time
from collections.abc import Callable, Mapping

from pagetwin.conformance.adapters.protocol import Adapter, AdapterError, SessionRefused
from pagetwin.conformance.experiments.scenarios import Played, fitted, play_and_judge
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.shrink import shrink
from pagetwin.conformance.suite.tally import Tally

MAX_RUNS = 400
"""Scenarios played for one property."""


def shrink_findings(
    tallies: Mapping[str, Tally],
    adapter: Adapter,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Replaces the scenario of every broken property by a smaller one that breaks it, too.

    Those of one scenario share the runs that it takes. When the seconds are over what is smaller
    by then stays; an engine that dies while it is asked leaves the rest as it was found.
    """
    deadline = clock() + seconds
    played: dict[Scenario, Played | None] = {}

    def play(scenario: Scenario) -> Played | None:
        if scenario not in played:
            try:
                played[scenario] = play_and_judge(fitted(scenario, adapter), adapter)
            except SessionRefused:
                played[scenario] = None
        return played[scenario]

    for property_id, tally in tallies.items():
        if tally.scenario is None or not tally.records:
            continue

        def breaks(scenario: Scenario, property_id: str = property_id) -> bool:
            if clock() > deadline:
                return False
            found = play(scenario)
            return found is not None and any(
                one.property_id == property_id for one in found.violations
            )

        try:
            shrunk = shrink(tally.scenario, breaks, max_runs=MAX_RUNS)
        except AdapterError:
            return
        final = played.get(shrunk.scenario)
        if shrunk.accepted and final is not None:
            tally.scenario, tally.records = shrunk.scenario, tuple(final.records)
