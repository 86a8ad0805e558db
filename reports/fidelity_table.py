"""How true the twin is, as tables: decisions by history, times by run."""

from collections.abc import Callable, Sequence

from pagetwin.conformance.fidelity.result import (
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
    """A row per workload and load: errors of the predictions in per cent, of the mean pass."""
    return _by_load(reports, lambda passes: f"{_error(passes):+.1%}")


def passes_table(reports: Sequence[FidelityReport]) -> Table:
    """Likewise: how far the measured passes of the same requests lie apart, the longest from the
    shortest, as a share of their mean; for loads with several passes."""
    return _by_load(reports, _spread, least=2)


def interval_table(reports: Sequence[FidelityReport]) -> Table:
    """Likewise: the errors' 95 % intervals, the mean of the passes' ones."""
    return _by_load(reports, _interval)


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
    """A row per run that was recorded with other knobs than those it was predicted from."""
    columns = ["model", "workload", "knobs", "requests", *MEASURES]
    rows = []
    for result in results:
        knobs = ", ".join(f"{name}={value}" for name, value in result.changes.items())
        cells = [result.model, result.workload, knobs, str(result.num_requests)]
        rows.append([*cells, *(_cell(result, name) for name in MEASURES)])
    return Table(columns, rows, num_left=3)


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


def _by_load(
    reports: Sequence[FidelityReport], cell: Callable[[list[Measure]], str], least: int = 1
) -> Table:
    columns = ["model", "workload", "load", "fitted to", "requests", "passes", *MEASURES]
    rows = []
    for report in reports:
        for (workload, load), runs in _loads(report).items():
            if len(runs) < least:
                continue
            fitted = "yes" if any(run.was_fitted_to for run in runs) else "no"
            cells = [report.model, workload, load, fitted]
            cells += [str(runs[0].num_requests), str(len(runs))]
            for name in MEASURES:
                passes = [m for run in runs for m in run.measures if m.name == name]
                cells.append(cell(passes) if passes else "")
            rows.append(cells)
    return Table(columns, rows, num_left=4)


def _error(passes: list[Measure]) -> float:
    return sum(one.predicted for one in passes) / sum(one.measured for one in passes) - 1


def _spread(passes: list[Measure]) -> str:
    measured = [one.measured for one in passes]
    return f"{(max(measured) - min(measured)) * len(measured) / sum(measured):.1%}"


def _interval(passes: list[Measure]) -> str:
    low, high = (
        sum(getattr(one, side) for one in passes) / len(passes) for side in ("low", "high")
    )
    return _range(low, high)


def _range(low: float, high: float) -> str:
    return f"{low:+.1%} to {high:+.1%}"


def _cell(run: MeasuredElsewhere | WhatIfFidelity, name: str) -> str:
    for measure in run.measures:
        if measure.name == name:
            return f"{measure.error:+.1%}"
    return ""


def _values(measure: Measure) -> list[str]:
    if measure.name == "throughput":
        return [f"{number(value, 4)} tok/s" for value in (measure.measured, measure.predicted)]
    return [f"{number(value * 1e3, 4)} ms" for value in (measure.measured, measure.predicted)]
