"""Measurements of other engines and kernels, as they are kept in baselines/peers.json."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from pagetwin.engine.errors import TraceError

BASELINES = Path(__file__).parent / "baselines"
PEERS = "peers.json"
SCHEMA: Final = "pagetwin.peers/2"


class Speed(msgspec.Struct, frozen=True):
    """A kernel's median time, and what that is of memory and of arithmetic."""

    us: float
    gb_per_s: float
    tflops: float


class AttentionPeer(msgspec.Struct, frozen=True):
    """Two kernels on one batch; None for one that did not run."""

    case: str
    fa3: Speed | None
    vllm_triton: Speed | None


class EnginePeer(msgspec.Struct, frozen=True, kw_only=True):
    """An engine on a workload of conformance/bench/workloads.py."""

    model: str
    workload: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: tuple[float, ...]
    """Of each pass, in order."""


class Peers(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of one device, on one date."""

    device: str
    """As its driver calls it."""
    date: str
    versions: Mapping[str, str]
    origin: str
    """How it was measured."""
    engine: str
    ceilings: Mapping[str, float]
    attention: tuple[AttentionPeer, ...]
    startup_s: Mapping[str, float]
    """By model."""
    rows: tuple[EnginePeer, ...]

    def row(self, model: str, workload: str) -> EnginePeer | None:
        found = (row for row in self.rows if (row.model, row.workload) == (model, workload))
        return next(found, None)

    def case(self, name: str) -> AttentionPeer | None:
        return next((row for row in self.attention if row.case == name), None)


class PeersFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file: an entry for each device."""

    schema: Literal["pagetwin.peers/2"] = SCHEMA
    devices: tuple[Peers, ...] = ()

    def replacing(self, new: Peers) -> "PeersFile":
        """With this entry in the place of the one of its device, or at the end."""
        kept = tuple(new if old.device == new.device else old for old in self.devices)
        return PeersFile(devices=kept if new in kept else (*kept, new))


def load_peers(baselines: Path = BASELINES) -> tuple[Peers, ...]:
    """An entry for each device. Raises TraceError if the file is damaged."""
    path = baselines / PEERS
    try:
        return msgspec.json.decode(path.read_bytes(), type=PeersFile).devices
    except msgspec.DecodeError as error:
        raise TraceError(f"{path}: {error}") from None


def measured_on(device: str, peers: Iterable[Peers]) -> Peers | None:
    """The peers of that very device: numbers of two devices say nothing about each other.

    Every table that sets a peer beside us chooses it by this.
    """
    return next((one for one in peers if one.device == device), None)
