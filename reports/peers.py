"""Measurements of other engines and kernels, as they are kept in baselines/peers.json."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

BASELINES = Path(__file__).parent / "baselines"


class Speed(msgspec.Struct, frozen=True):
    """A kernel's median time, and what that is of memory and of arithmetic."""

    us: float
    gb_per_s: float
    tflops: float


class AttentionPeer(msgspec.Struct, frozen=True):
    case: str
    fa3: Speed
    vllm_triton: Speed


class EnginePeer(msgspec.Struct, frozen=True):
    model: str
    workload: str
    seconds: tuple[float, ...]
    output_tokens_per_s: float
    total_tokens_per_s: float


class Peers(msgspec.Struct, frozen=True):
    """Everything of one device, on one date."""

    device: str
    date: str
    versions: Mapping[str, str]
    ceilings: Mapping[str, float]
    attention: tuple[AttentionPeer, ...]
    engine: str
    startup_s: Mapping[str, float]
    rows: tuple[EnginePeer, ...]

    def row(self, model: str, workload: str) -> EnginePeer | None:
        found = (row for row in self.rows if (row.model, row.workload) == (model, workload))
        return next(found, None)

    def case(self, name: str) -> AttentionPeer | None:
        return next((row for row in self.attention if row.case == name), None)


def load_peers() -> Peers:
    return msgspec.json.decode((BASELINES / "peers.json").read_bytes(), type=Peers)


def peers_of(device: str) -> Peers | None:
    """The peers measured on that device: numbers of two devices say nothing about each other."""
    peers = load_peers()
    return peers if peers.device == device else None
