"""Faults: something goes wrong at one place of a small workload, and everybody else is well."""

from collections.abc import Iterator
from itertools import zip_longest
from random import Random

import msgspec

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.faults.campaign import KINDS, Campaign, supported_kinds
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget


class Faults:
    """One fault of each kind in turn, until all have struck everywhere or the budget ends."""

    id = "faults"
    judges = KINDS
    needs = frozenset({Flag.STEP_TRACE, Flag.STEP_CONTROL, Flag.POLICY, Flag.RESET_CACHE})
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        campaign = Campaign(adapter)
        waiting = {kind: _cases(campaign, kind, seed) for kind in supported_kinds(adapter)}
        number = 0
        while any(waiting.values()) and budget.allows(number):
            for kind, cases in waiting.items():
                if cases:
                    yield _evidence(campaign, kind, cases.pop())
            number += 1


def _cases(campaign: Campaign, kind: str, seed: int) -> list[Scenario]:
    """Every place of every setting, the last first: the settings by turns, the places of each in an
    order of the seed's."""
    random = Random(f"{kind} {seed}")
    columns = []
    for setting in campaign.settings().values():
        faults = list(campaign.places(kind, setting))
        random.shuffle(faults)
        columns.append([msgspec.structs.replace(setting, fault=fault) for fault in faults])
    turns = [case for row in zip_longest(*columns) for case in row if case is not None]
    return turns[::-1]


def _evidence(campaign: Campaign, kind: str, case: Scenario) -> Evidence:
    run = campaign.judge(case)
    found = run.violations[0] if run.violations else None
    return Evidence(
        property_id=kind,
        goals={goal: run.goals[goal] for goal in CATALOGUE[kind].goals},
        violation=found,
        scenario=run.scenario if found else None,
        records=run.records if found else (),
    )
