"""The scenarios that trials share: the suite's own stream, drawn once for all mutants."""

from functools import lru_cache

from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.suite.stream import example

_SCENARIOS = scenarios()


@lru_cache(maxsize=8192)
def random_scenario(seed: int, index: int) -> Scenario:
    """Scenario `index` of the stream `seed`."""
    return example(_SCENARIOS, seed, index)
