"""Decides what a workload written as one line means: `KIND:key=value,key=value,...`.

    poisson:rate=8,input=512,output=128,requests=20000
    gamma:rate=8,cv=3,input=lognormal:1000:1.2:8000,output=uniform:16:512,duration=600
    closed:users=64,think=5,input=512,output=128,requests=10000
    sessions:rate=1,turns=uniform:2:8,think=20,input=200,output=300,system=1500,requests=5000
    trace:file=conversation.csv,speed=2,requests=1000

docs/simulating.md has the table of kinds and keys.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.workloads import arrival_times
from pagetwin.simulator.workloads.closed_loop import ClosedLoop
from pagetwin.simulator.workloads.columns import SECONDS, Columns
from pagetwin.simulator.workloads.content import SystemPrompts
from pagetwin.simulator.workloads.lengths import (
    Fixed,
    Lengths,
    LogNormal,
    Resampled,
    Uniform,
    fitted,
)
from pagetwin.simulator.workloads.open_loop import OpenLoop
from pagetwin.simulator.workloads.sessions import Sessions
from pagetwin.simulator.workloads.trace_files import read_trace
from pagetwin.simulator.workloads.traces import Trace
from pagetwin.simulator.workloads.workload import Extent, Workload

LENGTH_FORMS = "N, uniform:LOW:HIGH, lognormal:MEAN:CV[:MOST], resampled:FILE or fitted:FILE"


class Fields:
    """The keys of one spec, each to be taken once."""

    def __init__(self, spec: str, kind: str, pairs: dict[str, str]) -> None:
        self.spec = spec
        self._kind = kind
        self._pairs = pairs
        self._asked: list[str] = []

    def text(self, key: str, default: str | None = None) -> str | None:
        self._asked.append(key)
        return self._pairs.pop(key, default)

    def needed(self, key: str, form: str) -> str:
        value = self.text(key)
        if value is None:
            raise self.error(f"{self._kind} needs {key}={form}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.needed(key, "NUMBER") if default is None else self.text(key)
        return default if value is None and default is not None else self._float(key, value or "")

    def optional_number(self, key: str) -> float | None:
        value = self.text(key)
        return None if value is None else self._float(key, value)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.needed(key, "N") if default is None else self.text(key)
        return default if value is None and default is not None else self._int(key, value or "")

    def optional_integer(self, key: str) -> int | None:
        value = self.text(key)
        return None if value is None else self._int(key, value)

    def lengths(self, key: str, column: str) -> Lengths:
        """Of that key; a file named in it gives its column of that meaning."""
        text = self.needed(key, "LENGTH")
        form, *parts = text.split(":")
        try:
            match form, len(parts):
                case "uniform", 2:
                    return Uniform(int(parts[0]), int(parts[1]))
                case "lognormal", 2 | 3:
                    most = int(parts[2]) if len(parts) == 3 else None
                    return LogNormal(float(parts[0]), float(parts[1]), most)
                case (("resampled" | "fitted"), 1):
                    values = _lengths_in(Path(parts[0]), column)
                    return Resampled(values) if form == "resampled" else fitted(values)
                case _, 0:
                    return Fixed(int(form))
        except ConfigError as error:
            raise self.error(f"{key}={text}: {error}") from None
        except ValueError as error:
            if type(error) is not ValueError:
                raise
        raise self.error(f"{key}={text} is no length; write {LENGTH_FORMS}")

    def done(self) -> None:
        """Raises ConfigError if a key is left that nobody asked for."""
        if self._pairs:
            raise self.error(
                f"{self._kind} has no {', '.join(self._pairs)}; it takes {', '.join(self._asked)}"
            )

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"workload {self.spec!r}: {message}")

    def _float(self, key: str, value: str) -> float:
        try:
            return float(value)
        except ValueError:
            raise self.error(f"{key}={value} is not a number") from None

    def _int(self, key: str, value: str) -> int:
        try:
            return int(value)
        except ValueError:
            raise self.error(f"{key}={value} is not a whole number") from None


def parse_workload(spec: str) -> Workload:
    """The workload that a spec describes.

    Raises ConfigError, naming the spec, the key and what it may be; TraceError for a trace whose
    lengths cannot be read.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise ConfigError(
            f"workload {spec!r}: {kind!r} is no kind of workload; use {', '.join(KINDS)}"
        )
    pairs: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ConfigError(
                f"workload {spec!r}: {part!r} is not key=value; write KIND:key=value,key=value"
            )
        if key in pairs:
            raise ConfigError(f"workload {spec!r}: {key} is given twice; give it once")
        pairs[key] = value
    fields = Fields(spec, kind, pairs)
    try:
        workload = KINDS[kind](fields)
    except ConfigError as error:
        raise error if str(error).startswith("workload '") else fields.error(str(error)) from None
    fields.done()
    return workload


def _open(times: Callable[[Fields], arrival_times.ArrivalTimes]) -> Callable[[Fields], Workload]:
    def build(fields: Fields) -> Workload:
        return OpenLoop(arrivals=times(fields), **_requests(fields))

    return build


def _requests(fields: Fields) -> dict[str, Any]:
    """What all generated workloads have."""
    return {
        "prompt": fields.lengths("input", "prompt"),
        "output": fields.lengths("output", "output"),
        "system": _system(fields),
        "extent": Extent(
            num_requests=fields.optional_integer("requests"),
            duration_s=fields.optional_number("duration"),
        ),
    }


def _system(fields: Fields) -> SystemPrompts | None:
    num_tokens = fields.optional_integer("system")
    families, skew = fields.optional_integer("families"), fields.optional_number("skew")
    if num_tokens is None:
        if families is not None or skew is not None:
            raise fields.error("families and skew are of system prompts; give system=TOKENS, too")
        return None
    return SystemPrompts(
        num_tokens=num_tokens,
        num_families=1 if families is None else families,
        skew=0.0 if skew is None else skew,
    )


def _gamma(fields: Fields) -> arrival_times.ArrivalTimes:
    return arrival_times.Gamma(fields.number("rate"), fields.number("cv"))


def _diurnal(fields: Fields) -> arrival_times.ArrivalTimes:
    return arrival_times.Diurnal(
        fields.number("rate"), fields.number("swing", 0.5), fields.number("period", 86400.0)
    )


def _closed(fields: Fields) -> Workload:
    return ClosedLoop(
        num_users=fields.integer("users"),
        think_s=fields.number("think", 0.0),
        **_requests(fields),
    )


def _sessions(fields: Fields) -> Workload:
    rate, cv = fields.number("rate"), fields.number("cv", 1.0)
    return Sessions(
        arrivals=arrival_times.Poisson(rate) if cv == 1 else arrival_times.Gamma(rate, cv),
        turns=fields.lengths("turns", "output"),
        think_s=fields.number("think", 0.0),
        **_requests(fields),
    )


def _trace(fields: Fields) -> Workload:
    unit = fields.text("unit")
    if unit is not None and unit not in SECONDS:
        raise fields.error(f"unit={unit} is no unit of time; use {', '.join(SECONDS)}")
    columns = {name: fields.text(name) for name in ("arrival", "prompt", "output", "session")}
    return Trace(
        path=Path(fields.needed("file", "FILE")),
        columns=msgspec.convert(columns | {"unit": unit}, Columns),
        speed=fields.number("speed", 1.0),
        num_requests=fields.optional_integer("requests"),
    )


def _lengths_in(path: Path, column: str) -> tuple[int, ...]:
    entries = read_trace(path)
    if column == "prompt":
        return tuple(entry.prompt_tokens for entry in entries)
    return tuple(entry.output_tokens for entry in entries)


KINDS: dict[str, Callable[[Fields], Workload]] = {
    "poisson": _open(lambda fields: arrival_times.Poisson(fields.number("rate"))),
    "gamma": _open(_gamma),
    "constant": _open(lambda fields: arrival_times.Constant(fields.number("rate"))),
    "diurnal": _open(_diurnal),
    "offline": _open(lambda fields: arrival_times.AtOnce()),
    "closed": _closed,
    "sessions": _sessions,
    "trace": _trace,
}
