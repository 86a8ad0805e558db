"""What an adapter offers: an engine described, opened into sessions, driven, and observed.

Only `describe`, `capabilities`, `open`, `submit`, `run`, `observations` and `close` are required.
Everything else is a protocol of its own, which a session has if its adapter claims the flag that
the protocol's docstring names.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from pagetwin.conformance.capability import Capabilities
from pagetwin.conformance.faults.fault import AnyFault
from pagetwin.conformance.observation import AnyObservation, Opened
from pagetwin.conformance.scenario import ScriptedOutput
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import PagetwinError
from pagetwin.engine.request import Request
from pagetwin.engine.trace import Record

if TYPE_CHECKING:
    from torch import Tensor

    from pagetwin.conformance.faults.striking import Strikes
    from pagetwin.kernels.trial import Span


class AdapterError(PagetwinError):
    """The engine cannot be reached, opened or asked for this; the message gives the remedy."""


class SessionRefused(AdapterError):
    """The engine cannot be opened with this SessionConfig; nothing is wrong with it."""


class EngineDied(AdapterError):
    """The engine ended, or stopped answering, in the middle of a session."""


class EngineCrashed(EngineDied):
    """The engine raised while it worked on what it was asked, and is of no more use; a session that
    is opened afresh is another engine. What it raised is a finding, not the end of a run."""


class EngineTimeout(EngineDied):
    """The engine did not finish within the time given to `run`."""


class AdapterLied(AdapterError):
    """The adapter claims a capability that it has not; nothing it shows can be trusted."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is tested. None where the engine does not say, or where a session decides."""

    name: str
    version: str = ""
    model: str = ""
    model_sha256: str = ""
    dtype: str = ""
    device: str = ""
    vocab_size: int | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    knobs: dict[str, str] = {}
    """Whatever else a reader must know to repeat the run."""

    def opened(self) -> Opened:
        """First observation of a session."""
        return Opened(engine=self.name, version=self.version, model=self.model, knobs=self.knobs)


class SessionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a session asks of an engine. None leaves the choice to the engine.

    An adapter honours what it can express and raises SessionRefused for what it cannot; it never
    ignores a value.
    """

    cache: CacheConfig | None = None
    scheduler: SchedulerConfig | None = None
    seed: int = 0
    vocab_size: int | None = None
    """For engines whose model is made to order (`fingerprint:`, `sim:`)."""
    with_text: bool = False
    """Whether text is wanted beside token ids; without it an engine need not make any."""
    failing_requests: tuple[str, ...] = ()
    """Requests some of whose rows give no token. Needs Flag.FAILING_ROWS."""
    fault: AnyFault | None = None
    """What strikes the engine; the session is then a FaultySession. Needs Flag.FAULT_INJECTION."""
    outputs: tuple[ScriptedOutput, ...] = ()
    """Output tokens to give instead of computed ones. Needs Flag.FORCE_TOKENS."""
    model: str | None = None
    """A checkpoint folder to load instead of the engine's own model. Needs Flag.CHECKPOINT."""


class Session(Protocol):
    """One life of an engine, from an empty cache on. Observations start with `opened`."""

    def submit(self, request: Request, *, cancel_after: int | None = None) -> None:
        """Hands a request over; a refusal is observed, not raised.

        With `cancel_after` the client gives the request up when it has seen so many output
        tokens of its first sample (0: at once). Needs Flag.CANCEL.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Gives a request up now; unknown and finished ones are ignored. Needs Flag.CANCEL."""
        ...

    def run(self, timeout_s: float) -> None:
        """Drives the engine until every request has ended.

        Raises EngineTimeout if that takes longer (what was observed stays), EngineDied if the
        engine ends or stops answering.
        """
        ...

    def observations(self) -> Sequence[AnyObservation]:
        """Everything seen so far, in order."""
        ...

    def close(self) -> None:
        """Ends the session; twice is once."""
        ...


class Adapter(Protocol):
    """One engine under test."""

    def describe(self) -> EngineInfo: ...

    def capabilities(self) -> Capabilities: ...

    def open(self, config: SessionConfig) -> Session:
        """A fresh session. Raises SessionRefused or AdapterError."""
        ...

    def close(self) -> None:
        """Lets go of whatever the adapter holds (a process, a model); twice is once."""
        ...


@runtime_checkable
class AttendingAdapter(Adapter, Protocol):
    """Flag.ATTENTION."""

    def attend(
        self,
        spans: "Sequence[Span]",
        *,
        block_size: int,
        scale: float,
        sliding_window: int,
        poison: float,
        placement_seed: int,
    ) -> "Tensor":
        """Paged attention of the spans' rows, [rows, num_heads, head_size], over a pool laid out
        by pagetwin.kernels.trial.make_batch: `poison` fills whatever no row may read, and
        `placement_seed` draws the blocks."""
        ...


@runtime_checkable
class RecordingSession(Session, Protocol):
    """Flag.STEP_TRACE."""

    def records(self) -> Sequence[Record]:
        """The history so far, in the vocabulary of pagetwin.engine.trace, header first."""
        ...


@runtime_checkable
class SteppingSession(RecordingSession, Protocol):
    """Flag.STEP_CONTROL: the driver decides when a step starts and when its result counts."""

    def start_step(self) -> bool:
        """Plans and launches a step; False if there was nothing to plan."""
        ...

    def finish_step(self) -> bool:
        """Lets the oldest step in flight take effect; False if none is in flight."""
        ...

    def has_unfinished_requests(self) -> bool: ...


@runtime_checkable
class FaultySession(SteppingSession, Protocol):
    """Flag.FAULT_INJECTION: what a session that was opened with a fault has beside the rest."""

    @property
    def strikes(self) -> "Strikes":
        """What the fault did so far; `is_over` may be set, and then it strikes no more."""
        ...

    def num_kept(self) -> int:
        """Sequences and requests that the executor remembers."""
        ...


@runtime_checkable
class MemorySession(SteppingSession, Protocol):
    """Flag.READ_KV and Flag.POISON: what is in the blocks can be seen, and, where nothing of worth
    stands, spoilt. Between steps only."""

    def empty_blocks(self) -> Sequence[int]:
        """Device blocks that nobody holds and that cache nothing."""
        ...

    def read_block(self, block_id: int, *, of_host: bool = False) -> "Tensor":
        """A copy of the block: [num_layers, 2, block_size, num_kv_heads, head_size], on the CPU."""
        ...

    def poison(self, block_id: int, *, first_slot: int = 0) -> None:
        """NaN in the device block's slots from `first_slot` on, keys and values of all layers."""
        ...


@runtime_checkable
class ResettableSession(Session, Protocol):
    """Flag.RESET_CACHE."""

    def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks; False if the engine cannot now."""
        ...


class TokenScores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores at one position of a forced text."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@runtime_checkable
class ScoringSession(Session, Protocol):
    """Flag.SCORE."""

    def score(
        self, prompt_token_ids: Sequence[int], continuation: Sequence[int]
    ) -> list[TokenScores]:
        """Log-probabilities of each token of `continuation`, given all before it."""
        ...


@runtime_checkable
class PreemptingSession(Session, Protocol):
    """Flag.FORCE_PREEMPT."""

    def force_preempt(self, request_id: str) -> bool:
        """Has the next plan preempt a request, as docs/policy.md P3.5 says for engines that follow
        it; False, and nothing happens, if it does not run."""
        ...
