"""How a simulation is told on a terminal: a table of latencies, and lines of everything else."""

from collections.abc import Iterator

from pagetwin.reports.tables import Table, number
from pagetwin.simulator.results.report import FIGURES, LATENCIES, SimulationReport
from pagetwin.simulator.results.summary import Summary

NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E", "queue_s": "queue"}


def simulation_text(report: SimulationReport) -> str:
    """All of a report that people look at first."""
    run, count = report.runs[0], len(report.runs)
    lines = [f"workload  {report.workload}"]
    if run.costs:
        lines.append(f"costs     {run.costs}")
    if count > 1:
        lines.append(f"seeds     {count}; +- is half of a 95 % interval of the mean over them")
    latencies = latency_table(report)
    if latencies.rows:
        lines += ["", latencies.text()]
    return "\n".join([*lines, "", *_lines(report, run)])


def latency_table(report: SimulationReport) -> Table:
    """A row for each latency, in milliseconds."""
    rows = []
    for latency in LATENCIES:
        if all(getattr(run, latency) is not None for run in report.runs):
            cells = [_cell(report, latency, figure) for figure in FIGURES]
            rows.append([NAMES[latency], *cells])
    return Table(["ms", *FIGURES], rows)


def _cell(report: SimulationReport, latency: str, figure: str) -> str:
    if len(report.runs) == 1:
        return number(getattr(getattr(report.runs[0], latency), figure) * 1e3)
    interval = report.intervals[f"{latency}.{figure}"]
    assert interval.high is not None
    return f"{number(interval.value * 1e3)} +- {number((interval.high - interval.value) * 1e3)}"


def _lines(report: SimulationReport, run: Summary) -> Iterator[str]:
    if report.is_saturated:
        growing = next(one for one in report.backlogs if one.settling == "grows")
        yield f"SATURATED: {growing.growth:.0%} of what arrives piles up, so TTFT, E2E and queue"
        yield "times tell the length of the run, and are left out; lower the load or add replicas"
    elif any(one.settling == "unclear" and one.growth > 0 for one in report.backlogs):
        yield "UNCLEAR whether the queue settles; simulate more requests to tell"
    if len(report.runs) > 1:
        yield f"of seed {run.seed}:"
    yield _requests_line(run)
    yield (
        f"throughput  {number(run.requests_per_s)} requests/s, "
        f"{number(run.output_tokens_per_s)} output and "
        f"{number(run.prompt_tokens_per_s)} prompt tokens/s in {number(run.duration_s)} s"
    )
    if run.goodput is not None:
        yield (
            f"goodput     {number(run.goodput.requests_per_s)} requests/s, "
            f"{run.goodput.share:.1%} of what arrived"
        )
        for verdict in run.goodput.verdicts:
            value = "none" if verdict.value_s is None else f"{number(verdict.value_s * 1e3)} ms"
            yield f"  {verdict.term.name:<20} {'met' if verdict.met else 'NOT MET'}: {value}"
    yield (
        f"replicas    busy {run.busy_share:.0%}, KV blocks held {run.kv_use_mean:.0%} on average, "
        f"{run.kv_use_max:.0%} at most"
    )
    yield (
        f"memory      prefix hits {run.prefix_hit_rate:.1%} of the tokens looked up, "
        f"{run.num_preemptions} preemptions, {run.num_evictions} evictions"
    )
    little = run.little
    yield (
        f"Little      {number(little.mean_outstanding)} outstanding = "
        f"{number(little.arrivals_per_s)}/s x {number(little.mean_time_s)} s, exactly"
    )
    yield (
        f"estimates   {number(run.bill.gpu_hours)} GPU hours, ${number(run.bill.cost)}, "
        f"{number(run.bill.energy_kwh)} kWh"
        + (
            f", ${number(run.bill.cost_per_million_output_tokens)} per million output tokens"
            if run.bill.cost_per_million_output_tokens
            else ""
        )
    )


def _requests_line(run: Summary) -> str:
    line = f"requests    {run.num_finished} of {run.num_requests} finished"
    for what in ("rejected", "refused", "failed"):
        count = getattr(run, f"num_{what}")
        line += f", {count} {what}" if count else ""
    if run.num_failures:
        line += f"; {run.num_failures} failures of replicas, {run.num_retries} requests tried again"
    return line
