"""Random members of the model families that our engine has, against transformers."""

from collections.abc import Iterator
from itertools import count

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.conformance.trials.registry import find_trial

FAMILIES = "num.families"


class Families:
    """Runs the trial of that name; the model that the adapter has does not matter."""

    id = "families"
    judges = (FAMILIES,)
    needs = frozenset({Flag.COMPONENTS})
    weight = 0.5

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        trial = find_trial("families")
        for index in count():
            if not budget.allows(index):
                return
            found = trial.run(seed, index)
            yield Evidence(property_id=FAMILIES, violation=found[0] if found else None)
