"""The plan's page and its charts: whole, escaped, and drawn from what was tried."""

import re

import msgspec
import pytest

from pagetwin.reports.plan_page import render_plan_page
from pagetwin.reports.xy_figure import Axis, Dot, Line, cdf, xy_chart
from pagetwin.simulator.cluster.deployment import Deployment
from pagetwin.simulator.plan.answer import answer_of
from pagetwin.simulator.plan.candidates import Candidate
from pagetwin.simulator.plan.search import Plan
from pagetwin.simulator.plan.trial import Trial
from pagetwin.simulator.results.slo import parse_slo
from pagetwin.simulator.statistics.intervals import Interval

SLO = parse_slo("ttft_p95<500ms")


def trial(replicas: int, value: float, factor: float = 1.0) -> Trial:
    return Trial(
        candidate=Candidate(deployment=Deployment(gpu="h100", replicas=replicas)),
        outcome="meets" if value < 0.5 else "misses",
        factor=factor,
        intervals={SLO.terms[0].name: Interval(value=value, confidence=0.95, num_samples=3)},
        goodput_share=min(1.0, 0.5 / value),
    )


def page(winner: Trial | None, *others: Trial) -> str:
    trials = tuple(filter(None, (winner, *others)))
    plan = Plan(winner=winner, by_design=trials[:1], trials=trials, load_met=1.5, load_missed=None)
    answer = answer_of(plan, SLO, workload="<workload>", model="m&m", confidence=0.95)
    return render_plan_page(answer, plan, SLO)


def test_the_page_says_what_won_and_what_was_tried() -> None:
    text = page(trial(2, 0.4), trial(1, 0.9), trial(2, 0.45, factor=1.5))
    assert "2 x H100" in text
    assert text.count("<circle") == 2 + 2
    assert "At 1.5 times the load it still meets the objective." in text
    assert "&lt;workload&gt;" in text
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=", text)


def test_the_page_of_a_plan_without_a_winner() -> None:
    text = page(None, trial(1, 0.9))
    assert "Nothing that was tried meets the objective." in text
    assert "What would change the answer" not in text


@pytest.mark.parametrize("is_log", [False, True])
def test_charts_keep_all_that_can_be_drawn_inside_their_frame(is_log: bool) -> None:
    points = [(0.0, 1.0), (1e-3, 20.0), (5.0, float("nan")), (7.0, 1e4)]
    svg = str(
        xy_chart(
            "c",
            Axis("x", is_log),
            Axis("y", is_log),
            [Line("l", "a", points)],
            [Dot(2, 3, "b", "<d>")],
        )
    )
    [path] = re.findall(r'd="M([^"HV]*)" class="line a"', svg)
    drawn = [tuple(map(float, pair.split())) for pair in path.split("L")]
    assert len(drawn) == (2 if is_log else 3)
    assert all(78 <= x <= 534 and 14 <= y <= 208 for x, y in drawn)
    assert "&lt;d&gt;" in svg


def test_an_axis_of_shares_ends_at_their_whole() -> None:
    axis = Axis("%", low=0.0, high=100.0)
    svg = str(xy_chart("c", Axis("x"), axis, [Line("l", "a", [(0, 10), (1, 100)])]))
    assert ">100<" in svg
    assert ">120<" not in svg


def test_of_a_queue_that_grows_no_percentile_is_shown() -> None:
    grows = msgspec.structs.replace(trial(1, 0.3), outcome="saturated", why="it grows")
    assert ">300<" in page(None, trial(1, 0.3))
    assert ">300<" not in page(None, grows)
    plan = Plan(winner=None, by_design=(), trials=(grows,))
    [row] = answer_of(plan, SLO, workload="w", model="m", confidence=0.95).trials
    assert row["intervals"] == {}


def test_nothing_to_draw_is_said() -> None:
    assert "nothing to draw" in str(xy_chart("c", Axis("x"), Axis("y")))


def test_a_cdf_ends_at_one() -> None:
    values = [float(value) for value in range(1000)]
    points = cdf(values)
    assert points[0] == (0.0, 0.001)
    assert points[-1] == (999.0, 1.0)
    assert len(points) <= 121
    assert cdf([]) == []
