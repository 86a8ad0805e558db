"""Fills the tables of docs/performance.md and fidelity.md from the results in reports/baselines.

The page says `<!-- table: NAME -->`, then a table, then `<!-- end -->`. What stands between is
made from the JSON files alone, so that no number on the page was typed. The name of a table of one
device ends in what that device's files begin with: `engine h200`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pagetwin.engine.errors import TraceError
from pagetwin.reports.fidelity_table import (
    decision_table,
    elsewhere_table,
    error_table,
    fidelity_steps_table,
    interval_table,
    open_loops,
    passes_table,
    whatif_error_table,
)
from pagetwin.reports.invariance_table import invariance_table
from pagetwin.reports.kernel_table import (
    attention_table,
    best_ceilings,
    ceilings_table,
    kernel_grid,
)
from pagetwin.reports.offline_table import floor_table, offline_table, startup_table, step_table
from pagetwin.reports.results import DeviceResults, NotComparable, Results
from pagetwin.reports.setup_table import setup_table
from pagetwin.reports.simulator_table import load_simulator_peers, simulator_table
from pagetwin.reports.tables import Table, number

_MARKED = re.compile(r"<!-- table: (?P<name>.*?) -->\n.*?<!-- end -->", re.DOTALL)

_Source = TypeVar("_Source")


def _floors(results: DeviceResults) -> Table:
    offline, kernels = results.offline, results.kernels
    if offline.device != kernels.device:
        raise NotComparable(
            f"the engine ran on {offline.device}, the ceilings are of {kernels.device}"
        )
    ceilings = best_ceilings(kernels, results.peers)
    return floor_table(offline, gb_per_s=ceilings.copy_gb_per_s, tflops=ceilings.matmul_tflops)


def _versions(results: Results) -> Table:
    rows = []
    for version in results.versions:
        measured = version.measured_s
        if measured is None:
            measured = results.on(version.device).newest_seconds()
        words = [version.name, version.device, version.change, version.outcome]
        for key in dict.fromkeys((*version.predicted_s, *measured)):
            numbers = [number(version.predicted_s.get(key)), number(measured.get(key))]
            rows.append([*words, key, *numbers])
            words = [""] * len(words)
    columns = ["version", "device", "change", "outcome", "row", "predicted s", "measured s"]
    return Table(columns, rows, num_left=5)


DEVICE_TABLES: dict[str, Callable[[DeviceResults], Table]] = {
    "setup": lambda on: setup_table(on.offline, on.kernels, on.peers),
    "ceilings": lambda on: ceilings_table(on.kernels, on.peers),
    "engine": lambda on: offline_table(on.offline, on.peers),
    "invariance": lambda on: invariance_table(on.offline, on.offline_not_invariant),
    "startup": lambda on: startup_table(on.offline, on.peers),
    "steps": lambda on: step_table(on.offline),
    "floors": _floors,
    "attention": lambda on: attention_table(on.kernels, on.peers),
    "kernels": lambda on: kernel_grid(on.kernels, on.peers),
}

FIDELITY_TABLES: dict[str, Callable[[DeviceResults], Table]] = {
    "fidelity decisions": lambda on: decision_table(on.fidelity),
    "fidelity errors": lambda on: error_table(on.fidelity),
    "fidelity launches": lambda on: error_table(open_loops(on.launches)),
    "fidelity passes": lambda on: passes_table(on.fidelity),
    "fidelity steps": lambda on: fidelity_steps_table(on.fidelity),
    "fidelity intervals": lambda on: interval_table(on.fidelity),
    "fidelity whatif": lambda on: whatif_error_table(on.whatif),
}

TABLES: dict[str, Callable[[Results], Table]] = {
    "versions": _versions,
    "simulator": lambda results: simulator_table(results.simulator, load_simulator_peers()),
    "fidelity elsewhere": lambda results: elsewhere_table(results.elsewhere),
}


def filled(page: str, baselines: Path) -> str:
    """The page with every table made anew; one whose results are not there yet says so.

    Raises TraceError if the page asks for a table that there is none of, or a result is damaged.
    """
    results = Results(baselines)
    of_device = DEVICE_TABLES | FIDELITY_TABLES

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        kind, _, device = name.rpartition(" ")
        if name in TABLES:
            body = _made(TABLES[name], results)
        elif kind in of_device:
            body = _made(of_device[kind], results.on(device))
        else:
            known = ", ".join((*(f"{kind} DEVICE" for kind in of_device), *TABLES))
            raise TraceError(f"table {name!r} is unknown; use some of {known}")
        return f"<!-- table: {name} -->\n\n{body}\n\n<!-- end -->"

    return _MARKED.sub(fill, page)


def _made(table: Callable[[_Source], Table], source: _Source) -> str:
    try:
        return table(source).markdown()
    except FileNotFoundError as error:
        return f"Not measured yet: there is no `{Path(error.filename).name}`."
    except NotComparable as error:
        return f"Not comparable: {error}."
