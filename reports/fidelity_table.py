"""How true the twin is, as tables: decisions by history, times by run."""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from pagetwin.conformance.fidelity.result import (
    AT_ONCE,
    FidelityReport,
    Measure,
    MeasuredElsewhere,
    RunFidelity,
    WhatIfFidelity,
)
from pagetwin.reports.tables import Table, number

MEASURES = (
    "throughput",
    *(f"{name}_p{p}" for name in ("ttft", "tpot", "e2e") for p in (50, 95, 99)),
)


def decision_table(reports: Sequence[FidelityReport]) -> Table:
    """A row per history: what was compared, and how many differences there are."""
    rows = [
        [
            report.model,
            name,
            f"{judged.steps:,}",
            f"{judged.decisions:,}",
            "0" if judged.difference is None else "1 or more",
        ]
        for report in reports
        for name, judged in report.decisions.items()
    ]
    return Table(["model", "history", "steps", "decisions", "different"], rows, num_left=2)


def error_table(reports: Sequence[FidelityReport]) -> Table:
    """A row per run: errors of the predictions in per cent."""
    return _by_run(reports, lambda measure: f"{measure.error:+.1%}")


def open_loops(reports: Sequence[FidelityReport]) -> list[FidelityReport]:
    """The reports with those runs alone in which requests came one by one."""
    return [
        msgspec.structs.replace(
            report, runs=tuple(run for run in report.runs if run.load != AT_ONCE)
        )
        for report in reports
    ]


def interval_table(reports: Sequence[FidelityReport]) -> Table:
    """A row per run: the errors' 95 % intervals."""
    return _by_run(reports, lambda measure: _range(measure.low, measure.high))


def passes_table(reports: Sequence[FidelityReport]) -> Table:
    """A row per workload and load of which there are several passes: how far the measured figures
    lie apart, the largest from the smallest, as a share of their mean."""
    rows = []
    for report in reports:
        for (workload, load), runs in _loads(report).items():
            if len(runs) > 1:
                cells = [report.model, workload, load, str(len(runs))]
                rows.append([*cells, *(_spread(runs, name) for name in MEASURES)])
    return Table(["model", "workload", "load", "passes", *MEASURES], rows, num_left=3)


def detail_table(reports: Sequence[FidelityReport]) -> Table:
    """A row per run and measure: measured, predicted, the error and its interval."""
    columns = ["model", "run", "measure", "measured", "predicted", "error", "95 %"]
    rows = []
    for report in reports:
        for run in report.runs:
            for measure in run.measures:
                cells = [report.model, run.label, measure.name, *_values(measure)]
                rows.append([*cells, f"{measure.error:+.1%}", _range(measure.low, measure.high)])
    return Table(columns, rows, num_left=3)


def whatif_error_table(results: Sequence[WhatIfFidelity]) -> Table:
    """Three rows per run that was recorded with other knobs than those it was predicted from: what
    the knobs changed, what they were predicted to change, and the error of the prediction."""
    columns = ["model", "run", "knobs", "fitted to", "requests", "", *MEASURES]
    rows = []
    for result in results:
        knobs = ", ".join(f"{name}={value}" for name, value in result.changes.items())
        fitted = "yes" if result.was_fitted_to else "no"
        cells = [result.model, result.label, knobs, fitted, str(result.num_requests)]
        before = {one.name: one.measured for one in result.change}
        for name, shares in (
            ("measured change", {m.name: m.measured / before[m.name] - 1 for m in result.measures}),
            ("predicted change", {m.name: m.error for m in result.change}),
            ("error", {m.name: m.error for m in result.measures}),
        ):
            figures = (f"{shares[m]:+.1%}" if m in shares else "" for m in MEASURES)
            rows.append([*cells, name, *figures])
            cells = [""] * len(cells)
    return Table(columns, rows, num_left=6)


def fidelity_steps_table(reports: Sequence[FidelityReport]) -> Table:
    """A row per workload and load: step times predicted one by one, the recorded decisions given;
    all passes together."""
    rows = []
    for report in reports:
        for (workload, load), runs in _loads(report).items():
            times = [run.step_times for run in runs]
            measured_s = sum(one.measured_s for one in times)
            total = sum(one.total_error * one.measured_s for one in times) / measured_s
            each = sum(one.mean_absolute_error * one.measured_s for one in times) / measured_s
            cells = [report.model, workload, load, f"{sum(one.steps for one in times):,}"]
            rows.append([*cells, number(measured_s), f"{total:+.2%}", f"{each:.2%}"])
    columns = ["model", "workload", "load", "steps", "measured s", "sum", "a step"]
    return Table(columns, rows, num_left=3)


def elsewhere_table(results: Sequence[MeasuredElsewhere]) -> Table:
    """A row per measured run of another engine: errors of uncalibrated predictions."""
    columns = ["run", "engine", "GPUs", "KV blocks", "requests", *MEASURES]
    rows = []
    for result in results:
        kind = "recorded" if result.blocks_are_recorded else "estimated"
        cells = [result.name, result.engine, str(result.tensor_parallel)]
        cells += [f"{result.num_blocks:,} {kind}", str(result.num_requests)]
        rows.append([*cells, *(_cell(result, name) for name in MEASURES)])
    return Table(columns, rows, num_left=2)


def _loads(report: FidelityReport) -> dict[tuple[str, str], list[RunFidelity]]:
    """The passes of each workload at each load, in order."""
    loads: dict[tuple[str, str], list[RunFidelity]] = {}
    for run in report.runs:
        loads.setdefault((run.workload, run.load), []).append(run)
    return loads


def _by_run(reports: Sequence[FidelityReport], cell: Callable[[Measure], str]) -> Table:
    columns = ["model", "workload", "load", "process", "pass", "fitted to", "requests", *MEASURES]
    rows = []
    for report in reports:
        processes = {source.name: str(i) for i, source in enumerate(report.histories, start=1)}
        for (workload, load), runs in _loads(report).items():
            passes: Counter[str] = Counter()
            for run in runs:
                passes[run.history] += 1
                place = [processes[run.history], str(passes[run.history])]
                fitted = "yes" if run.was_fitted_to else "no"
                cells = [report.model, workload, load, *place, fitted, str(run.num_requests)]
                found = {measure.name: cell(measure) for measure in run.measures}
                rows.append([*cells, *(found.get(name, "") for name in MEASURES)])
    return Table(columns, rows, num_left=3)


def _spread(runs: Sequence[RunFidelity], name: str) -> str:
    measured = [m.measured for run in runs for m in run.measures if m.name == name]
    if not measured:
        return ""
    return f"{(max(measured) - min(measured)) * len(measured) / sum(measured):.1%}"


def _range(low: float, high: float) -> str:
    return f"{low:+.1%} to {high:+.1%}"


def _cell(run: MeasuredElsewhere, name: str) -> str:
    for measure in run.measures:
        if measure.name == name:
            return f"{measure.error:+.1%}"
    return ""


def _values(measure: Measure) -> list[str]:
    if measure.name == "throughput":
        return [f"{number(value, 4)} tok/s" for value in (measure.measured, measure.predicted)]
    return [f"{number(value * 1e3, 4)} ms" for value in (measure.measured, measure.predicted)]
