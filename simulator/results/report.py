"""Decides what several runs that differ by their seed say together."""

from collections.abc import Sequence
from typing import Any

import msgspec

from pagetwin.simulator.results.result import Result
from pagetwin.simulator.results.slo import Slo
from pagetwin.simulator.results.summary import Summary, summarise
from pagetwin.simulator.statistics.intervals import Interval, replication_interval
from pagetwin.simulator.statistics.saturation import Backlog, backlog

SCHEMA = "pagetwin.simulation/1"
LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")
UNSETTLED = ("ttft_s", "e2e_s", "queue_s")
"""Latencies that grow with the length of a run whose queue grows."""
FIGURES = ("mean", "p50", "p90", "p95", "p99")
RATES = ("requests_per_s", "output_tokens_per_s", "kv_use_mean", "prefix_hit_rate", "busy_share")


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The workload at a multiple of its load."""

    factor: float
    run: Summary
    backlog: Backlog


class SimulationReport(msgspec.Struct, frozen=True, kw_only=True):
    """`intervals` are over the runs, by names such as `ttft_s.p95`; empty for a single run.

    A run whose queue grew as long as requests arrived has no `ttft_s`, `e2e_s` and `queue_s`: they
    would tell how long it was, and nothing of the system; no term of an objective on them is met.
    """

    schema: str = SCHEMA
    workload: str
    settings: dict[str, Any]
    """Model, pools and policy, as given."""
    runs: tuple[Summary, ...]
    backlogs: tuple[Backlog, ...]
    """Whether the queue settled, for each run."""
    intervals: dict[str, Interval]
    curve: tuple[LoadPoint, ...] = ()
    """By load, ascending, of the first seed; empty unless asked for."""

    @property
    def is_saturated(self) -> bool:
        """In some run the queue grew."""
        return any(one.settling == "grows" for one in self.backlogs)


def report_of(
    results: Sequence[Result],
    *,
    workload: str,
    settings: dict[str, Any],
    slo: Slo | None = None,
    confidence: float = 0.95,
) -> SimulationReport:
    backlogs = tuple(map(backlog_of, results))
    runs = [summarise(result, slo) for result in results]
    for place, one in enumerate(backlogs):
        if one.settling == "grows":
            runs[place] = _without_unsettled(runs[place])
    return SimulationReport(
        workload=workload,
        settings=settings,
        runs=tuple(runs),
        backlogs=backlogs,
        intervals=_intervals(runs, confidence) if len(runs) > 1 else {},
    )


def _without_unsettled(run: Summary) -> Summary:
    """Its terms of the objective on such latencies are not met either."""
    goodput = run.goodput
    if goodput is not None:
        verdicts = tuple(
            msgspec.structs.replace(one, value_s=None, met=False)
            if f"{one.term.metric}_s" in UNSETTLED
            else one
            for one in goodput.verdicts
        )
        goodput = msgspec.structs.replace(goodput, verdicts=verdicts)
    return msgspec.structs.replace(run, **dict.fromkeys(UNSETTLED), goodput=goodput)


def figures(run: Summary) -> dict[str, float]:
    """What intervals are made of, by name; without what the run does not have."""
    found = {name: getattr(run, name) for name in RATES}
    for latency in LATENCIES:
        spread = getattr(run, latency)
        if spread is not None:
            found |= {f"{latency}.{figure}": getattr(spread, figure) for figure in FIGURES}
    if run.goodput is not None:
        found["goodput.share"] = run.goodput.share
    return found


def load_point(factor: float, result: Result, slo: Slo | None) -> LoadPoint:
    return LoadPoint(factor=factor, run=summarise(result, slo), backlog=backlog_of(result))


def backlog_of(result: Result) -> Backlog:
    columns = result.requests
    return backlog(columns["arrival_s"], columns["end_s"], columns["first_scheduled_s"])


def _intervals(runs: Sequence[Summary], confidence: float) -> dict[str, Interval]:
    """Of the figures that every run has."""
    found = [figures(run) for run in runs]
    names = [name for name in found[0] if all(name in one for one in found)]
    return {name: replication_interval([one[name] for one in found], confidence) for name in names}
