"""The page of a simulation: latencies, queue and pool over time, and what other loads would do."""

import numpy as np
from markupsafe import Markup

from pagetwin.reports.pages import render, styles
from pagetwin.reports.simulation_table import NAMES, latency_table, simulation_text
from pagetwin.reports.xy_figure import Axis, Dot, Line, cdf, xy_chart
from pagetwin.simulator.results.report import LoadPoint, SimulationReport
from pagetwin.simulator.results.result import Result
from pagetwin.simulator.results.slo import Slo

QUEUE = {"running": "num_running", "waiting": "num_waiting"}
POOL = {"held": "num_held_blocks", "all": "num_blocks"}
DRAWN = ("ttft_s", "tpot_s", "e2e_s", "queue_s")


def render_simulation_page(report: SimulationReport, result: Result, slo: Slo | None) -> str:
    """One HTML document; `result` is the run that is drawn, the first one."""
    return render(
        "simulation.html.j2",
        css=styles("page.css", "chart.css"),
        report=report,
        run=report.runs[0],
        sentence=_sentence(report),
        is_good=_is_good(report),
        limits=[] if slo is None else slo.terms,
        text=simulation_text(report),
        latencies=latency_table(report),
        names=[NAMES[name] for name in DRAWN],
        cdf_svg=_cdfs(result, slo),
        queue_svg=_timeline(result, QUEUE, "sequences"),
        pool_svg=_timeline(result, POOL, "KV blocks"),
        queue_names=list(QUEUE),
        pool_names=list(POOL),
        throughput_svg=_throughput(report.curve),
        latency_svg=_latency_by_load(report.curve),
    )


def _is_good(report: SimulationReport) -> bool:
    """The queue settles, something is served, and the first run keeps the objective, if any."""
    run = report.runs[0]
    verdicts = () if run.goodput is None else run.goodput.verdicts
    is_kept = all(verdict.met for verdict in verdicts)
    return not report.is_saturated and run.num_finished > 0 and is_kept


def _sentence(report: SimulationReport) -> str:
    run = report.runs[0]
    if report.is_saturated:
        return "Saturated: requests arrive faster than they are served."
    missed = [] if run.goodput is None else [v.term.name for v in run.goodput.verdicts if not v.met]
    parts = [f"{run.num_finished:,} of {run.num_requests:,} requests served"]
    if run.ttft_s is not None:
        parts.append(f"p95 of TTFT {run.ttft_s.p95 * 1e3:,.3g} ms")
    if run.tpot_s is not None:
        parts.append(f"p95 of TPOT {run.tpot_s.p95 * 1e3:,.3g} ms")
    if missed:
        parts.append(f"objective missed: {', '.join(missed)}")
    return ", ".join(parts) + "."


def _cdfs(result: Result, slo: Slo | None) -> Markup:
    lines = []
    for place, name in enumerate(DRAWN):
        seconds = np.sort(result.served(name)) * 1e3
        points = [(x, 100 * share) for x, share in cdf(seconds.tolist())]
        lines.append(Line(NAMES[name], f"series{place}", points))
    dots = [
        Dot(
            term.limit_s * 1e3,
            term.percentile,
            f"series{DRAWN.index(f'{term.metric}_s')}",
            f"limit: {term.name}",
        )
        for term in (slo.terms if slo is not None else ())
    ]
    return xy_chart(
        "Latencies of the requests that finished",
        Axis("milliseconds", is_log=True),
        Axis("requests at or below, %", low=0.0, high=100.0),
        lines,
        dots,
    )


def _timeline(result: Result, columns: dict[str, str], what: str) -> Markup:
    times = result.timeline["time_s"]
    lines = [
        Line(
            name,
            f"series{place}",
            list(zip(times.tolist(), result.timeline[column].tolist(), strict=True)),
        )
        for place, (name, column) in enumerate(columns.items())
    ]
    return xy_chart(f"{what} over time", Axis("seconds", low=0.0), Axis(what, low=0.0), lines)


def _throughput(curve: tuple[LoadPoint, ...]) -> Markup:
    if not curve:
        return Markup("")
    served = [(point.factor, point.run.output_tokens_per_s) for point in curve]
    dots = [
        Dot(*at, _mark(point), f"{point.factor:.3g} times the load: {point.backlog}")
        for at, point in zip(served, curve, strict=True)
    ]
    return xy_chart(
        "Output tokens a second, by load",
        Axis("times the load"),
        Axis("output tokens/s", low=0.0),
        [Line("output tokens/s", "series0", served)],
        dots,
    )


def _latency_by_load(curve: tuple[LoadPoint, ...]) -> Markup:
    """Of a load at which the queue grows no percentile is drawn."""
    if not curve:
        return Markup("")
    settled = [point for point in curve if point.backlog.settling != "grows"]
    lines = []
    for place, name in enumerate(DRAWN):
        points = [
            (point.factor, spread.p95 * 1e3)
            for point in settled
            if (spread := getattr(point.run, name)) is not None
        ]
        lines.append(Line(f"p95 of {NAMES[name]}", f"series{place}", points))
    return xy_chart(
        "95th percentiles, by load",
        Axis("times the load"),
        Axis("milliseconds", is_log=True),
        lines,
    )


def _mark(point: LoadPoint) -> str:
    return {"settles": "good", "grows": "bad", "unclear": "open"}[point.backlog.settling]
