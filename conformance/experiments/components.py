"""The parts of our own engine that run a step, each on its own: rows, memory, text, searches."""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.conformance.trials.registry import find_trial

CRASH = "life.no-crash"
JUDGED = {
    "reused ids": ("sched.admission-feasible", "twin.lockstep", CRASH),
    "crowded searches": ("preempt.victim", "twin.lockstep", CRASH),
    "lookahead": ("preempt.justified", "twin.lockstep", CRASH),
    "pictures": ("iso.history-independence", "twin.lockstep", CRASH),
    "text": ("text.decoded", "text.finish-reason", CRASH),
    "fallback text": ("text.decoded", "text.finish-reason", CRASH),
    "reports": (
        "text.reported",
        "text.intervals",
        "life.as-asked",
        "sched.one-in-flight",
        "twin.lockstep",
        CRASH,
    ),
    "search": ("search.definition", CRASH),
    "batch": ("batch.rebuild", "batch.device-tables", CRASH),
    "work lists": ("num.work-lists", CRASH),
    "rich sampling": ("samp.support", "samp.penalties", "samp.logprobs", CRASH),
    "memory": ("mem.writes-own-slots", CRASH),
}
"""What each trial judges here: what no other experiment does, and what our engine's front may do
wrong though its parts are right."""
NEED_TRITON = {"work lists"}
"""Trials of what runs on a GPU alone; without Triton there is none, and they say nothing."""


class Components:
    """Runs the trials in turn; they need an engine in this process, and no session."""

    id = "components"
    judges = tuple(dict.fromkeys(name for names in JUDGED.values() for name in names))
    needs = frozenset({Flag.COMPONENTS})
    weight = 2.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        has_triton = find_spec("triton") is not None
        for index in count():
            if not budget.allows(index):
                return
            for trial, judged in JUDGED.items():
                if trial in NEED_TRITON and not has_triton:
                    continue
                found = find_trial(trial).run(seed, index)
                for property_id in judged:
                    broken = [one for one in found if one.property_id == property_id]
                    yield Evidence(property_id=property_id, violation=broken[0] if broken else None)
