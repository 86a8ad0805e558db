"""Reads what the scripts that measure other engines and kernels write, into one entry of peers.

Three kinds of JSON files, told apart by what is in them:

- an engine on a model: `{"model": folder, "load_s": s, "extra": {}, "runs": {workload: {"seconds":
  [s, ...], "prompt_tokens": n, "output_tokens": n, "n": requests}}}`;
- attention kernels: `[{"case": name, "fa3": {"us": t, "GBps": r, "TFLOPS": r} or an error's text,
  "vllm_triton": likewise}, ...]`;
- the device's ceilings: `{"copy_GBps": r, "read_GBps(torch.sum)": r, "matmul_bf16_TFLOPS": r}`.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from pagetwin.conformance.bench.workloads import VOCABULARY, WORKLOADS
from pagetwin.engine.errors import ConfigError, TraceError
from pagetwin.reports.peers import AttentionPeer, EnginePeer, Peers, Speed


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the files do not say of themselves."""

    device: str
    date: str
    versions: Mapping[str, str]
    origin: str

    @classmethod
    def of(cls, device: str, date: str, versions: Sequence[str], origin: str) -> Self:
        """From a command line; versions as NAME=VERSION. Raises ConfigError for what is amiss."""
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            raise ConfigError(f"--date {date}: give it as 2026-11-22") from None
        pairs = [version.partition("=") for version in versions]
        for name, _, value in pairs:
            if not name or not value:
                raise ConfigError(f"--version {name}: give NAME=VERSION, as vllm=0.26.0")
        named = {name: value for name, _, value in pairs}
        if "vllm" not in named:
            raise ConfigError("no --version vllm=...; a peer without its version is no peer")
        return cls(device=device, date=date, versions=named, origin=origin)


class _Run(msgspec.Struct, frozen=True):
    seconds: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    n: int


class _Engine(msgspec.Struct, frozen=True):
    model: str
    load_s: float
    runs: dict[str, _Run]
    extra: dict[str, Any] = {}


class _Speed(msgspec.Struct, frozen=True):
    us: float
    GBps: float
    TFLOPS: float

    def plain(self) -> Speed:
        return Speed(self.us, self.GBps, self.TFLOPS)


class _Case(msgspec.Struct, frozen=True):
    case: str
    fa3: _Speed | str
    vllm_triton: _Speed | str


class _Ceilings(msgspec.Struct, frozen=True):
    copy_gb_per_s: float = msgspec.field(name="copy_GBps")
    read_gb_per_s: float = msgspec.field(name="read_GBps(torch.sum)")
    matmul_bf16_tflops: float = msgspec.field(name="matmul_bf16_TFLOPS")


def read_peers(paths: Sequence[Path], session: Session) -> Peers:
    """One entry from all files of one session.

    Raises TraceError if a file is none of the three kinds, holds other work than ours, or repeats
    what another one holds.
    """
    found: dict[type, list[Any]] = {_Engine: [], list: [], _Ceilings: []}
    for path in paths:
        content = _read(path)
        found[type(content)].append(content)
    if len(found[list]) > 1 or len(found[_Ceilings]) > 1:
        raise TraceError("two files hold attention kernels, or two hold ceilings; give one of each")
    engines: list[_Engine] = found[_Engine]
    models = [_name(engine) for engine in engines]
    if len(set(models)) < len(models):
        raise TraceError(f"two files hold the same model ({', '.join(models)}); give one of each")
    return Peers(
        device=session.device,
        date=session.date,
        versions=session.versions,
        origin=session.origin,
        engine=f"vLLM {session.versions['vllm']}",
        ceilings=msgspec.structs.asdict(found[_Ceilings][0]) if found[_Ceilings] else {},
        attention=tuple(_attention(case) for case in found[list][0]) if found[list] else (),
        startup_s={_name(engine): engine.load_s for engine in engines},
        rows=tuple(row for engine in engines for row in _rows(engine)),
    )


def what_did_not_run(peers: Peers) -> Iterable[str]:
    """A line for each kernel that has no time."""
    for case in peers.attention:
        for name in ("fa3", "vllm_triton"):
            if getattr(case, name) is None:
                yield f"{name} did not run on {case.case}"


def _read(path: Path) -> Any:
    content = path.read_bytes()
    kinds: tuple[Any, ...] = (_Engine, list[_Case], _Ceilings)
    for kind in kinds:
        try:
            decoded = msgspec.json.decode(content, type=kind)
        except msgspec.DecodeError:
            continue
        if isinstance(decoded, _Engine):
            _check(path, decoded)
        return decoded
    raise TraceError(
        f"{path}: holds neither an engine's runs, nor attention kernels, nor ceilings (see "
        "reports/peer_files.py for the three forms)"
    )


def _check(path: Path, engine: _Engine) -> None:
    """The engine did our work, set up as always."""
    if engine.extra:
        raise TraceError(
            f"{path}: measured with the settings {engine.extra}; peers are kept as they come, "
            "without any"
        )
    for name, run in engine.runs.items():
        if name not in WORKLOADS:
            raise TraceError(f"{path}: workload {name!r} is none of {', '.join(WORKLOADS)}")
        ours = WORKLOADS[name](VOCABULARY)
        work = (
            len(ours),
            sum(len(request.prompt_token_ids) for request in ours),
            sum(request.num_output_tokens for request in ours),
        )
        theirs = (run.n, run.prompt_tokens, run.output_tokens)
        if theirs != work or not run.seconds:
            raise TraceError(
                f"{path}: {name} has {len(run.seconds)} passes of (requests, prompt tokens, output "
                f"tokens) {theirs}, where the workload is {work}; that is other work"
            )


def _name(engine: _Engine) -> str:
    return Path(engine.model).name


def _rows(engine: _Engine) -> Iterable[EnginePeer]:
    for name, run in engine.runs.items():
        yield EnginePeer(
            model=_name(engine),
            workload=name,
            num_requests=run.n,
            prompt_tokens=run.prompt_tokens,
            output_tokens=run.output_tokens,
            seconds=run.seconds,
        )


def _attention(case: _Case) -> AttentionPeer:
    speeds = [
        None if isinstance(speed, str) else speed.plain() for speed in (case.fa3, case.vllm_triton)
    ]
    return AttentionPeer(case.case, *speeds)
