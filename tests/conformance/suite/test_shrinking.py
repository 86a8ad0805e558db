"""What a run finds is made small on the engine that broke it, within its seconds."""

from pagetwin.conformance.adapters.without_model import WithoutModelAdapter
from pagetwin.conformance.experiments.scenarios import RandomScenarios, play_and_judge
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.scenario import encode_scenario
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.conformance.suite.shrinking import shrink_findings
from pagetwin.conformance.suite.tally import Tally
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.scheduler import Scheduler


class PreemptsTheFirst(Scheduler):
    """The victim is the first in order."""

    def __init__(self, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
        super().__init__(cache, scheduler)
        self._planner._victim = lambda: self._state.running[0]  # type: ignore[method-assign]


ADAPTER = WithoutModelAdapter("planted", PreemptsTheFirst)


def found() -> dict[str, Tally]:
    """The tallies of a run that goes on until it has found something."""
    tallies = {name: Tally(CATALOGUE[name]) for name in ("preempt.victim", "kv.conservation")}
    for piece in RandomScenarios().run(ADAPTER, Budget(1e9, max_examples=400), seed=1):
        if piece.property_id in tallies:
            tallies[piece.property_id].add("scenarios", piece)
        if tallies["preempt.victim"].has_violations:
            return tallies
    raise AssertionError("the planted bug was not found")


def test_a_finding_is_made_small_and_still_breaks_the_same_property() -> None:
    tallies = found()
    victim = tallies["preempt.victim"]
    before = victim.scenario
    assert before is not None
    shrink_findings(tallies, ADAPTER, seconds=60.0)
    after = victim.scenario
    assert after is not None
    assert len(encode_scenario(after)) < min(1000, len(encode_scenario(before)))
    played = play_and_judge(after, ADAPTER)
    assert "preempt.victim" in {one.property_id for one in played.violations}
    assert tuple(played.records) == victim.records
    assert tallies["kv.conservation"].scenario is None


def test_without_time_a_finding_stays_as_it_is() -> None:
    tallies = found()
    before = tallies["preempt.victim"].scenario
    ticks = iter(range(10_000))
    shrink_findings(tallies, ADAPTER, seconds=0.5, clock=lambda: float(next(ticks)))
    assert tallies["preempt.victim"].scenario == before
