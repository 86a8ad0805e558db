"""Faults at the places of a small workload, on the engine without a model."""

from random import Random

import msgspec

from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.faults.campaign import Campaign, supported_kinds
from pagetwin.conformance.properties import Violation


def judge_faults(seed: int, index: int) -> list[Violation]:
    """One fault of the kind whose turn it is, in a setting and at a place that are drawn."""
    random = Random(f"faults {seed} {index}")
    adapter = make_adapter("fingerprint:")
    campaign = Campaign(adapter)
    kinds = supported_kinds(adapter)
    kind = kinds[index % len(kinds)]
    settings = list(campaign.settings().values())
    random.shuffle(settings)
    for setting in settings:
        if places := list(campaign.places(kind, setting)):
            scenario = msgspec.structs.replace(setting, fault=random.choice(places))
            return list(campaign.judge(scenario).violations)
    raise AssertionError(f"{kind} can strike nowhere")
