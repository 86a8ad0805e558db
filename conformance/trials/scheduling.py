"""One scenario on engine, twin and every checker, to the end even where the engine is wrong."""

from collections.abc import Sequence

from pagetwin.conformance.alone import check_alone
from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.comparison import LockstepReport
from pagetwin.conformance.lockstep import run_lockstep
from pagetwin.conformance.properties import Violation
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.twins import fingerprint_executor
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import SteppingScheduler
from pagetwin.engine.trace import HistoryWriter, PlanRecord, Record
from pagetwin.simulator.replica import Replica


def judge_engine(scenario: Scenario) -> list[Violation]:
    """All that the scenario breaks: crashes, differences from the twin, the checkers' findings,
    and tokens that are not those of each request alone.

    Lockstep ends at the first difference. For the checkers, which need not know what the twin
    would do, the engine then runs beside another of its own kind, to the end.
    """
    found: list[Violation] = []
    records, difference = _run(scenario, Replica(scenario.cache, scenario.scheduler), found)
    if difference is not None and not difference.equal:
        found.append(
            Violation(
                "twin.lockstep",
                _last_step(records),
                f"engine and twin differ: {difference.explain()}",
            )
        )
        records, report = _run(scenario, Scheduler(scenario.cache, scenario.scheduler), found)
        if report is not None and not report.equal:
            found.append(
                Violation(
                    "sched.progress",
                    _last_step(records),
                    f"the engine does not come to an end: {report.explain()}",
                )
            )
    found += check_all(records)
    found += check_alone(records, scenario.vocab_size)
    return found


def _run(
    scenario: Scenario, beside: SteppingScheduler, found: list[Violation]
) -> tuple[Sequence[Record], LockstepReport | None]:
    """The history up to the end, or to the crash, which is added to `found`."""
    history = HistoryWriter(keep=True, with_block_tables=True)
    engine = Scheduler(scenario.cache, scenario.scheduler)
    try:
        report = run_lockstep(
            scenario, engine, beside, fingerprint_executor(scenario), history=history
        )
    except Exception as error:
        found.append(
            Violation(
                "life.no-crash",
                _last_step(history.records),
                f"the engine raised {type(error).__name__}: {error}",
            )
        )
        return history.records, None
    return history.records, report


def _last_step(records: Sequence[Record]) -> int:
    plans = (record.plan.step for record in reversed(records) if isinstance(record, PlanRecord))
    return next(plans, -1)
