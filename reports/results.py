"""The committed results, found by device and read when a table asks for them."""

import re
from pathlib import Path
from typing import TypeVar

import msgspec

from pagetwin.conformance.bench.kernel_result import KernelReport
from pagetwin.conformance.bench.offline_result import OfflineReport
from pagetwin.conformance.bench.simulation import SimulatorReport
from pagetwin.conformance.fidelity.result import FidelityReport, MeasuredElsewhere, WhatIfFidelity
from pagetwin.engine.errors import TraceError
from pagetwin.reports.peers import Peers, load_peers

_Result = TypeVar("_Result")
_OnDevice = TypeVar("_OnDevice", OfflineReport, KernelReport)


class NotComparable(Exception):
    """Two results say nothing about each other; the message says why."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A change that was made for speed: what it was to give, and what it gave."""

    name: str
    device: str
    """What the device's results begin with: `h100`."""
    change: str
    predicted_s: dict[str, float]
    """By model/workload; made before the change was measured."""
    measured_s: dict[str, float] | None = {}
    """None for the version that the device's result is of; empty for one not measured yet."""
    outcome: str = ""
    """What the difference between the two taught."""


class DeviceResults:
    """What was measured on one kind of device, whose files begin with its name: `h100_`.

    Raises FileNotFoundError where there is no such result, and TraceError for a damaged one and
    for one of another device than its name says.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._device = device

    @property
    def offline(self) -> OfflineReport:
        return self._read("offline", OfflineReport)

    @property
    def offline_not_invariant(self) -> OfflineReport:
        return self._read("offline_not_invariant", OfflineReport)

    @property
    def kernels(self) -> KernelReport:
        return self._read("kernels", KernelReport)

    @property
    def peers(self) -> tuple[Peers, ...]:
        """Of every device: a table takes those of its own."""
        return load_peers(self._folder)

    def newest_seconds(self) -> dict[str, float]:
        """Seconds of the fastest pass by model/workload; none if nothing is measured yet."""
        try:
            rows = self.offline.rows
        except FileNotFoundError:
            return {}
        return {f"{row.model}/{row.workload}": min(row.seconds) for row in rows}

    @property
    def fidelity(self) -> list[FidelityReport]:
        """Of each model, in the order of their names."""
        return _all(self._folder, f"{self._device}_fidelity_*.json", FidelityReport)

    @property
    def launches(self) -> list[FidelityReport]:
        """Likewise, judged with the launches of each run itself."""
        return _all(self._folder, f"{self._device}_launches_*.json", FidelityReport)

    @property
    def whatif(self) -> list[WhatIfFidelity]:
        """Likewise."""
        found = _all(self._folder, f"{self._device}_whatif_*.json", list[WhatIfFidelity])
        return [one for results in found for one in results]

    def _read(self, what: str, kind: type[_OnDevice]) -> _OnDevice:
        path = self._folder / f"{self._device}_{what}.json"
        report = decoded(path, kind)
        if self._device not in re.split(r"[^a-z0-9]+", report.device.lower()):
            raise TraceError(f"{path}: was measured on {report.device!r}, its name says otherwise")
        return report


class Results:
    """All results of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on(self, device: str) -> DeviceResults:
        return DeviceResults(self._folder, device)

    @property
    def simulator(self) -> SimulatorReport:
        return decoded(self._folder / "cpu_simulator.json", SimulatorReport)

    @property
    def versions(self) -> list[Version]:
        return decoded(self._folder / "versions.json", list[Version])

    @property
    def elsewhere(self) -> list[MeasuredElsewhere]:
        return _all(self._folder, "vllm_measured_*.json", MeasuredElsewhere)


def _all(folder: Path, pattern: str, kind: type[_Result]) -> list[_Result]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(2, "no such file", str(folder / pattern))
    return [decoded(path, kind) for path in paths]


def decoded(path: Path, kind: type[_Result]) -> _Result:
    """The result in a file. Raises TraceError if it is damaged or of another version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise TraceError(f"{path}: {error}; measure again with this version") from None
