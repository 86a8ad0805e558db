"""What a run comes to: agreement is concluded from counts, and trouble is explained."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.demo.findings import twin_findings, violation_differences
from pagetwin.conformance.demo.options import DemoOptions
from pagetwin.conformance.demo.workload import CACHE, SCHEDULER
from pagetwin.conformance.lockstep import replay_history
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.trace import PlanRecord, Record
from pagetwin.simulator.replica import Replica


def with_one_plan_changed(records: list[Record], change: str) -> list[Record]:
    """The history of an engine that gets one thing wrong, half way through."""
    index = [i for i, r in enumerate(records) if isinstance(r, PlanRecord)][40]
    record = records[index]
    assert isinstance(record, PlanRecord)
    replace = msgspec.structs.replace
    if change == "decision":
        first, *others = record.plan.scheduled
        first = replace(first, num_scheduled_tokens=first.num_scheduled_tokens + 1)
        record = replace(record, plan=replace(record.plan, scheduled=(first, *others)))
    elif change == "block table":
        seq_id, table = next(iter(record.block_tables.items()))
        record = replace(record, block_tables={**record.block_tables, seq_id: table[::-1]})
    else:
        counters = replace(record.counters, evictions=record.counters.evictions + 1)
        record = replace(record, counters=counters)
    return [*records[:index], record, *records[index + 1 :]]


@pytest.mark.parametrize("change", ["decision", "block table", "counter"])
def test_a_wrong_engine_is_counted_where_it_is_wrong(
    change: str, make_run: Callable[..., Any]
) -> None:
    records = with_one_plan_changed(list(make_run(20, 0).records), change)
    report = replay_history(records, Replica(CACHE, SCHEDULER))
    findings = twin_findings(report)
    counts = {
        "decision": findings.decision_differences,
        "block table": report.block_table_differences,
        "counter": findings.counter_differences,
    }
    assert counts == {name: int(name == change) for name in counts}
    assert findings.differences
    assert findings.differences[0].engine != findings.differences[0].other
    assert sum(check.differences for check in findings.checks) == 1


def test_a_broken_invariant_is_shown_with_its_statement(make_run: Callable[..., Any]) -> None:
    records = with_one_plan_changed(list(make_run(20, 0).records), "block table")
    differences = violation_differences(check_all(records))
    assert differences
    assert differences[0].what.startswith("Invariant kv.")
    assert differences[0].other_side == "invariant"


@pytest.mark.parametrize("num_requests", [-1, 0, 19])
def test_too_few_requests_are_refused(num_requests: int) -> None:
    with pytest.raises(ConfigError, match=f"--requests {num_requests} is below 20"):
        DemoOptions(num_requests=num_requests)


def test_the_command_line_can_be_pasted() -> None:
    options = DemoOptions(model="my models/a", seed=3)
    assert options.command == "pagetwin demo --requests 32 --seed 3 --model 'my models/a'"
