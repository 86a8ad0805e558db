"""How true the twin is, as tables: decisions by history, times by run."""

from collections.abc import Sequence

from pagetwin.conformance.fidelity.result import (
    FidelityReport,
    Measure,
    MeasuredElsewhere,
    RunFidelity,
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
    columns = ["model", "workload", "load", "fitted to", "requests", *MEASURES]
    rows = []
    for report in reports:
        for run in report.runs:
            fitted = "yes" if run.was_fitted_to else "no"
            cells = [report.model, run.workload, run.load, fitted, str(run.num_requests)]
            rows.append([*cells, *(_cell(run, name) for name in MEASURES)])
    return Table(columns, rows, num_left=4)


def interval_table(reports: Sequence[FidelityReport]) -> Table:
    """A row per run and measure: measured, predicted, the error and its interval."""
    columns = ["model", "workload", "load", "measure", "measured", "predicted", "error", "95 %"]
    rows = []
    for report in reports:
        for run in report.runs:
            for measure in run.measures:
                cells = [report.model, run.workload, run.load, measure.name]
                cells += [*_values(measure), f"{measure.error:+.1%}"]
                rows.append([*cells, f"{measure.low:+.1%} to {measure.high:+.1%}"])
    return Table(columns, rows, num_left=4)


def fidelity_steps_table(reports: Sequence[FidelityReport]) -> Table:
    """A row per run: step times predicted one by one, the recorded decisions given."""
    rows = [
        [
            report.model,
            run.workload,
            run.load,
            f"{run.step_times.steps:,}",
            number(run.step_times.measured_s),
            f"{run.step_times.total_error:+.2%}",
            f"{run.step_times.mean_absolute_error:.2%}",
        ]
        for report in reports
        for run in report.runs
    ]
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


def _cell(run: RunFidelity | MeasuredElsewhere, name: str) -> str:
    for measure in run.measures:
        if measure.name == name:
            return f"{measure.error:+.1%}"
    return ""


def _values(measure: Measure) -> list[str]:
    if measure.name == "throughput":
        return [f"{number(value, 4)} tok/s" for value in (measure.measured, measure.predicted)]
    return [f"{number(value * 1e3, 4)} ms" for value in (measure.measured, measure.predicted)]
