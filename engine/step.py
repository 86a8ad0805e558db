"""The plain data of one step: what a scheduler plans, what an executor returns.

`Scheduler.schedule()` makes a `StepPlan`, an executor turns it into a `StepResult`, and
`Scheduler.update(plan, result)` closes the step with a `StepUpdate`. No object is shared
across these lines, so an executor may be a CPU, a GPU, another process, or a simulator.
"""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from pagetwin.engine.request import Request

FinishReason = Literal["stop", "length", "abort", "error"]


class BlockCopy(NamedTuple):
    """Copy of a whole KV block; both ids are of the pools that the list's name says."""

    source: int
    destination: int


class ScheduledSequence(msgspec.Struct, frozen=True, gc=False):
    """One sequence's share of a step: positions [c, c + n) where c is num_computed_tokens."""

    seq_id: str
    num_computed_tokens: int
    num_scheduled_tokens: int
    new_block_ids: tuple[int, ...] = ()
    """Blocks appended to its table. Empty, like `replaced_blocks`, for a sequence that this plan
    introduces: there the whole table is given, as it is after the changes of this step."""
    replaced_blocks: tuple[tuple[int, int], ...] = ()
    """(table index, block id) of entries replaced by copy-on-write copies (P4.5)."""
    samples: bool = False
    """Whether the step reaches its last token, so that the executor samples (P2.7)."""


class IntroducedSequence(msgspec.Struct, frozen=True, kw_only=True):
    """All that an executor must know of a sequence it holds no valid row for.

    Sent for a sequence in the first plan that schedules it, and again in the first plan after
    a preemption, a fork or a beam selection. `token_ids` are all known tokens, prompt and
    output; `block_ids` is the whole table, null entries (0) included.
    """

    seq_id: str
    request_id: str
    sample_index: int
    token_ids: tuple[int, ...]
    block_ids: tuple[int, ...]
    num_cached_tokens: int = 0
    """Tokens found in the prefix cache at this admission (whole blocks and partial)."""


class Preemption(NamedTuple):
    """A sequence that gave up its blocks in this step."""

    seq_id: str
    mode: Literal["recompute", "swap"]


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one step does, in the order in which an executor does it (docs/policy.md P4.5)."""

    step: int
    swap_outs: tuple[BlockCopy, ...] = ()
    """Device block to host block."""
    swap_ins: tuple[BlockCopy, ...] = ()
    """Host block to device block."""
    copies: tuple[BlockCopy, ...] = ()
    """Device block to device block: copy-on-write, and partial prefix hits."""
    scheduled: tuple[ScheduledSequence, ...] = ()
    """In the order of planning: running, swapped-in, admitted."""
    introduced: tuple[IntroducedSequence, ...] = ()
    """In the order in which they stand in `scheduled`."""
    new_requests: tuple[Request, ...] = ()
    """Requests scheduled for the first time ever, in order."""
    preempted: tuple[Preemption, ...] = ()
    """In the order of preemption: forced ones (P3.5) come first."""
    dropped: tuple[str, ...] = ()
    """Ids of the rows that the executor forgets, sorted: of sequences that it holds a row for (by
    an introduction) and that finished, were aborted or preempted since the plan before, this
    plan's preemptions included."""
    ended_requests: tuple[str, ...] = ()
    """Requests that the executor forgets, sorted: carried by `new_requests` once, and ended or
    aborted since the plan before."""

    @property
    def num_scheduled_tokens(self) -> int:
        return sum(s.num_scheduled_tokens for s in self.scheduled)


class BeamSelection(msgspec.Struct, frozen=True, kw_only=True):
    """The next beams of a beam search, in beam order (docs/policy.md P2.8a).

    `parents` and `token_ids` have one entry per next beam: the sample index of its parent and
    the token it adds. Both are empty when `finished`.
    """

    request_id: str
    parents: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    finished: bool = False


class TokenLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities at one position: the chosen token's first, then the top ones.

    A token stands once. `ranks` are 1-based among the whole vocabulary.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]


class StepTimings(msgspec.Struct, frozen=True, kw_only=True):
    """Measured seconds of a step, and how it was run; never part of a decision."""

    prepare_s: float = 0.0
    """The host's, until the inputs are on their way."""
    execute_s: float = 0.0
    """The host's, for the forward pass; on a GPU, to launch it."""
    sample_s: float = 0.0
    """The host's, for the tokens; where a GPU draws them, the wait for the step to end."""
    device_s: float = 0.0
    """The GPU's, from the step's first kernel to its last; 0 on a CPU."""
    graph_size: int = 0
    """Sequences of the CUDA graph that ran the step, padding included; 0 without a graph."""
    eager_reason: str = ""
    """Why no CUDA graph ran the step, where there are graphs."""


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an executor returns for one plan."""

    step: int
    sampled: dict[str, int] = {}
    """Token by sequence id, for each sequence planned with `samples`; for a group that forks
    in this step, one entry for each of its samples. A beam has none."""
    failed: dict[str, str] = {}
    """Why a sequence planned with `samples` has no token (logits that are not numbers, masks that
    leave none), by sequence id (P5.1c)."""
    stop_strings: dict[str, str] = {}
    """The stop string that this step's token completed, by sequence id (P5.1a)."""
    selections: tuple[BeamSelection, ...] = ()
    logprobs: dict[str, TokenLogprobs] = {}
    """By sequence id, where the request asked for them, or for a beam its candidates."""
    prompt_logprobs: dict[str, tuple[TokenLogprobs, ...]] = {}
    """By sequence id: entry i of the tuple is for prompt position c + i + 1."""
    timings: StepTimings = StepTimings()


class FinishedSequence(msgspec.Struct, frozen=True):
    """Why a sequence ended. `stop_reason` is the stop token's id or the stop string, or what went
    wrong; None for EOS and for length."""

    seq_id: str
    reason: FinishReason
    stop_reason: int | str | None = None


class StepUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What closing a step changed."""

    step: int
    finished: tuple[FinishedSequence, ...] = ()
    """In the order of docs/policy.md P5.1b; beams of a search that is over included."""
    forked: tuple[tuple[str, str], ...] = ()
    """(parent, child) of groups that forked, in order; not beam selections."""


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """The books after an event: levels first, then totals since the start."""

    num_waiting: int = 0
    """Sequences waiting (a group that has not forked is one)."""
    num_running: int = 0
    """Running sequences, as counted towards max_num_seqs (a group counts its samples)."""
    num_swapped: int = 0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    """Device blocks that the prefix cache would hit, held or free."""
    num_free_host_blocks: int = 0
    prefix_queries: int = 0
    """Tokens of admitted sequences that were looked up."""
    prefix_hit_tokens: int = 0
    """Tokens of those found, partial hits included."""
    partial_hits: int = 0
    evictions: int = 0
    cow_copies: int = 0
    preemptions_recompute: int = 0
    preemptions_swap: int = 0
    finished: int = 0
    """Sequences that ended by themselves."""
    aborts: int = 0
    """Live requests aborted."""


class Executor(Protocol):
    """Whatever carries out plans: it keeps the KV memory and the rows of its sequences."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Carries out the plan, in the order of docs/policy.md P4.5."""
        ...


class PendingStep(Protocol):
    """A step that has begun."""

    def result(self) -> StepResult:
        """Waits for the step to end, if it has not; the same result each time."""
        ...


@runtime_checkable
class SubmittingExecutor(Protocol):
    """An executor that begins a step and goes on: the device works while the host plans."""

    def execute(self, plan: StepPlan) -> StepResult: ...

    def submit(self, plan: StepPlan) -> PendingStep:
        """Begins to carry out the plan; plans come in order, each once.

        A plan may schedule a token whose value only the step before knows (P5.3a).
        """
        ...


class DoneStep:
    """A step whose result is there."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result


class SteppingScheduler(Protocol):
    """The cycle that the engine's scheduler and the twin's replica both offer."""

    def add_request(self, request: Request) -> None: ...

    def abort_request(self, request_id: str) -> bool: ...

    def preempt_request(self, request_id: str) -> bool: ...

    def reset_prefix_cache(self) -> bool: ...

    def has_unfinished_requests(self) -> bool:
        """Whether a request lives, or a step is in flight."""
        ...

    def schedule(self) -> StepPlan | None: ...

    def update(self, plan: StepPlan, result: StepResult) -> StepUpdate: ...

    def counters(self) -> Counters: ...

    def block_table(self, seq_id: str) -> tuple[int, ...]: ...
