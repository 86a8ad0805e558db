"""The page of a capacity plan: the answer, what it rests on, and what would change it."""

from collections.abc import Sequence

from markupsafe import Markup

from pagetwin.reports.pages import render, styles
from pagetwin.reports.tables import number
from pagetwin.reports.xy_figure import Axis, Dot, Line, xy_chart
from pagetwin.simulator.plan.answer import Answer, pareto
from pagetwin.simulator.plan.search import Plan
from pagetwin.simulator.plan.trial import Trial
from pagetwin.simulator.results.slo import Slo

_MARKS = {"meets": "good", "misses": "bad", "saturated": "bad", "unclear": "open"}


def render_plan_page(answer: Answer, plan: Plan, slo: Slo) -> str:
    """One HTML document: no script, no file beside it, no network."""
    at_load_one = [trial for trial in plan.trials if trial.factor == 1]
    return render(
        "plan.html.j2",
        css=styles("page.css", "chart.css"),
        answer=answer,
        sentence=_sentence(answer),
        pareto_svg=_pareto(at_load_one),
        load_svg=_load_curve(plan, slo),
        trials=plan.trials,
        slo=slo,
        number=number,
    )


def _sentence(answer: Answer) -> str:
    if answer.winner is None:
        return "Nothing that was tried meets the objective."
    gpus = "1 GPU" if answer.num_gpus == 1 else f"{answer.num_gpus} GPUs"
    return f"{answer.winner}: {gpus} at ${answer.price_per_h:.2f} an hour."


def _pareto(trials: Sequence[Trial]) -> Markup:
    judged = [trial for trial in trials if trial.goodput_share is not None]
    dots = [
        Dot(
            trial.price_per_h,
            100 * (trial.goodput_share or 0.0),
            _MARKS.get(trial.outcome, "open"),
            f"{trial.candidate}: {trial.outcome}, {trial.goodput_share:.1%} in time",
        )
        for trial in judged
    ]
    front = pareto(tuple(judged))
    line = [(trial.price_per_h, 100 * (trial.goodput_share or 0.0)) for trial in front]
    return xy_chart(
        "Price against requests that are in time",
        Axis("US dollars an hour", low=0.0),
        Axis("requests within every limit, %", low=0.0, high=100.0),
        [Line("cheapest for what it gives", "front", line)],
        dots,
    )


def _load_curve(plan: Plan, slo: Slo) -> Markup:
    """Each limit's share that is used, by how many times the load the winner is given."""
    if plan.winner is None:
        return Markup("")
    tried = [t for t in plan.trials if t.candidate == plan.winner.candidate and t.believed]
    tried.sort(key=lambda trial: trial.factor)
    lines = [
        Line(
            term.name,
            f"series{place % 5}",
            [(t.factor, 100 * (t.excess(slo)[term.name] + 1)) for t in tried],
        )
        for place, term in enumerate(slo.terms)
    ]
    lines.append(Line("the limits", "limit", [(tried[0].factor, 100), (tried[-1].factor, 100)]))
    dots = [
        Dot(
            t.factor,
            100 * max(t.excess(slo).values()) + 100,
            _MARKS.get(t.outcome, "open"),
            f"{t.factor:.3g} times the load: {t.outcome} {t.why}",
        )
        for t in tried
    ]
    return xy_chart(
        "What is used of each limit, by load",
        Axis("times the load"),
        Axis("% of the limit", is_log=True),
        lines,
        dots,
    )
