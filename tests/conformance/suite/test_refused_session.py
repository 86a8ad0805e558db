"""An engine that cannot be opened as an experiment needs is no broken engine."""

from collections.abc import Iterator

from pagetwin.conformance.adapters.protocol import Adapter, SessionRefused
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.suite.evidence import Evidence, Status
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.conformance.suite.profiles import find_profile
from pagetwin.conformance.suite.runner import RunOptions, SuiteRun


class NeedsWhatIsNotThere:
    """Refused at once."""

    id = "picky"
    judges = ("kv.no-leak",)
    needs: frozenset[Flag] = frozenset()
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        yield Evidence(property_id="kv.no-leak", goals={"aborts in decode": 1})
        raise SessionRefused("heads of size 16 have no equal")


def test_a_refused_session_leaves_its_properties_undecided_and_the_run_whole() -> None:
    options = RunOptions(spec="fingerprint:", profile=find_profile("default"), budget_s=60)
    run = SuiteRun(make_adapter("fingerprint:"), options, experiments=[NeedsWhatIsNotThere()])
    result = run.run()
    assert result.complete
    [leak] = [one for one in result.results if one.property_id == "kv.no-leak"]
    assert leak.status == Status.UNDECIDED
    assert "heads of size 16" in leak.reason
