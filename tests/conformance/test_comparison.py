"""A difference is explained by what differs, and by nothing else."""

import pytest

from pagetwin.conformance.comparison import (
    Comparison,
    DifferenceFound,
    FieldDifference,
    differing_fields,
)
from pagetwin.engine.step import Counters, ScheduledSequence, StepPlan

LEFT = StepPlan(
    step=3, scheduled=(ScheduledSequence("a/0", 0, 4, (1,)), ScheduledSequence("b/0", 2, 1))
)
RIGHT = StepPlan(step=3, scheduled=(ScheduledSequence("a/0", 0, 4, (2,)),))


def test_equal_data_has_no_differing_fields() -> None:
    assert differing_fields(LEFT, LEFT) == []


def test_only_the_differing_fields_are_named() -> None:
    first, second = differing_fields(LEFT, RIGHT)
    assert first == FieldDifference("scheduled[0].new_block_ids[0]", "1", "2")
    assert second.path == "scheduled[1]"
    assert second.right == "(nothing)"
    assert '"seq_id":"b/0"' in second.left


def test_a_missing_plan_is_shown_beside_the_other() -> None:
    [field] = differing_fields(None, RIGHT)
    assert field.left == "null"
    assert "a/0" in field.right


def test_the_report_counts_what_was_compared_before_the_difference() -> None:
    comparison = Comparison(left_name="engine", right_name="twin")
    comparison.plans(LEFT, LEFT)
    comparison.counters("submit a", Counters(), Counters())
    comparison.where = "round 7"
    with pytest.raises(DifferenceFound):
        comparison.plans(LEFT, RIGHT)
    report = comparison.report()
    assert not report.equal
    assert (report.steps, report.decisions_compared, report.decision_differences) == (2, 4, 2)
    assert report.counters_compared == len(Counters.__struct_fields__)
    assert report.explain().splitlines()[:3] == [
        "round 7: schedule: engine and twin differ",
        "  scheduled[0].new_block_ids[0]",
        "    engine  1",
    ]


def test_a_report_without_a_difference_says_how_much_agreed() -> None:
    comparison = Comparison(left_name="engine", right_name="twin")
    comparison.plans(LEFT, LEFT)
    assert comparison.report().equal
    assert comparison.report().explain().startswith("no difference in 1 steps, 2 decisions")
