"""Fills the tables of docs/performance.md and fidelity.md from the results in reports/baselines.

The page says `<!-- table: NAME -->`, then a table, then `<!-- end -->`. What stands between is
made from the JSON files alone, so that no number on the page was typed.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from pagetwin.conformance.bench.kernel_result import KernelReport
from pagetwin.conformance.bench.offline_result import OfflineReport
from pagetwin.conformance.bench.simulation import SimulatorReport
from pagetwin.conformance.fidelity.result import FidelityReport, MeasuredElsewhere
from pagetwin.engine.errors import TraceError
from pagetwin.reports.fidelity_table import (
    decision_table,
    elsewhere_table,
    error_table,
    fidelity_steps_table,
    interval_table,
)
from pagetwin.reports.kernel_table import attention_table, ceilings_table, kernel_grid
from pagetwin.reports.offline_table import floor_table, offline_table, startup_table, step_table
from pagetwin.reports.peers import Peers
from pagetwin.reports.simulator_table import load_simulator_peers, simulator_table
from pagetwin.reports.tables import Table, number

OFFLINE, KERNELS, PEERS, VERSIONS, SIMULATOR = (
    "h100_offline.json",
    "h100_kernels.json",
    "peers.json",
    "versions.json",
    "cpu_simulator.json",
)
FIDELITY, ELSEWHERE = "h100_fidelity_*.json", "vllm_measured_*.json"
_MARKED = re.compile(r"<!-- table: (?P<name>.*?) -->\n.*?<!-- end -->", re.DOTALL)

_Result = TypeVar("_Result")


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A change that was made for speed: what it was to give, and what it gave."""

    name: str
    change: str
    predicted_s: dict[str, float]
    """By model/workload; made before the change was measured."""
    measured_s: dict[str, float] | None = {}
    """None for the version that the offline result is of; empty for one not measured yet."""
    outcome: str = ""
    """What the difference between the two taught."""


class Results:
    """The committed results, read when a table asks for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def offline(self) -> OfflineReport:
        return self._read(OFFLINE, OfflineReport)

    @property
    def kernels(self) -> KernelReport:
        return self._read(KERNELS, KernelReport)

    @property
    def simulator(self) -> SimulatorReport:
        return self._read(SIMULATOR, SimulatorReport)

    @property
    def versions(self) -> list[Version]:
        return self._read(VERSIONS, list[Version])

    @property
    def fidelity(self) -> list[FidelityReport]:
        """Of each model, in the order of their names."""
        return self._read_all(FIDELITY, FidelityReport)

    @property
    def elsewhere(self) -> list[MeasuredElsewhere]:
        return self._read_all(ELSEWHERE, MeasuredElsewhere)

    def peers(self, device: str) -> Peers | None:
        peers = self._read(PEERS, Peers)
        return peers if peers.device == device else None

    def newest_seconds(self) -> dict[str, float]:
        """Seconds of the fastest pass by model/workload; none if nothing is measured yet."""
        try:
            rows = self.offline.rows
        except FileNotFoundError:
            return {}
        return {f"{row.model}/{row.workload}": min(row.seconds) for row in rows}

    def _read_all(self, pattern: str, kind: type[_Result]) -> list[_Result]:
        names = sorted(path.name for path in self._folder.glob(pattern))
        if not names:
            raise FileNotFoundError(2, "no such file", str(self._folder / pattern))
        return [self._read(name, kind) for name in names]

    def _read(self, name: str, kind: type[_Result]) -> _Result:
        path = self._folder / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except msgspec.DecodeError as error:
            raise TraceError(f"{path}: {error}; measure again with this version") from None


def _engine(results: Results) -> Table:
    return offline_table(results.offline, results.peers(results.offline.device))


def _startup(results: Results) -> Table:
    return startup_table(results.offline, results.peers(results.offline.device))


def _steps(results: Results) -> Table:
    return step_table(results.offline)


def _floors(results: Results) -> Table:
    ceilings = results.kernels.ceilings
    return floor_table(
        results.offline, gb_per_s=ceilings.copy_gb_per_s, tflops=ceilings.matmul_tflops
    )


def _ceilings(results: Results) -> Table:
    return ceilings_table(results.kernels, results.peers(results.kernels.device))


def _attention(results: Results) -> Table:
    return attention_table(results.kernels, results.peers(results.kernels.device))


def _kernels(results: Results) -> Table:
    return kernel_grid(results.kernels)


def _versions(results: Results) -> Table:
    rows = []
    for version in results.versions:
        measured = version.measured_s
        if measured is None:
            measured = results.newest_seconds()
        words = [version.name, version.change, version.outcome]
        for key in dict.fromkeys((*version.predicted_s, *measured)):
            numbers = [number(version.predicted_s.get(key)), number(measured.get(key))]
            rows.append([*words, key, *numbers])
            words = [""] * len(words)
    columns = ["version", "change", "outcome", "row", "predicted s", "measured s"]
    return Table(columns, rows, num_left=4)


def _simulator(results: Results) -> Table:
    return simulator_table(results.simulator, load_simulator_peers())


TABLES: dict[str, Callable[[Results], Table]] = {
    "ceilings": _ceilings,
    "engine": _engine,
    "startup": _startup,
    "steps": _steps,
    "floors": _floors,
    "attention": _attention,
    "kernels": _kernels,
    "versions": _versions,
    "simulator": _simulator,
    "fidelity decisions": lambda results: decision_table(results.fidelity),
    "fidelity errors": lambda results: error_table(results.fidelity),
    "fidelity steps": lambda results: fidelity_steps_table(results.fidelity),
    "fidelity elsewhere": lambda results: elsewhere_table(results.elsewhere),
    "fidelity intervals": lambda results: interval_table(results.fidelity),
}


def filled(page: str, baselines: Path) -> str:
    """The page with every table made anew; one whose results are not there yet says so.

    Raises TraceError if the page asks for a table that there is none of, or a result is damaged.
    """
    results = Results(baselines)

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise TraceError(f"table {name!r} is unknown; use some of {', '.join(TABLES)}")
        try:
            body = TABLES[name](results).markdown()
        except FileNotFoundError as error:
            body = f"Not measured yet: there is no `{Path(error.filename).name}`."
        return f"<!-- table: {name} -->\n\n{body}\n\n<!-- end -->"

    return _MARKED.sub(fill, page)
