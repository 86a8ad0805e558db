"""Capabilities: what an engine lets a harness see and do, and why where it does not."""

from collections.abc import Iterable, Mapping
from enum import IntEnum, StrEnum
from typing import Literal

import msgspec


class Level(IntEnum):
    """How far one sees into an engine. What is judged at a level needs nothing above it."""

    TEXT = 0
    TOKENS = 1
    SCORES = 2
    CACHE_EVENTS = 3
    STEPS = 4
    MEMORY = 5
    CONTROL = 6

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")


class Flag(StrEnum):
    """One thing that an engine can show, do, or promise."""

    TEXT = "text"
    TOKEN_IDS = "token_ids"
    """Output as token ids."""
    TOKEN_PROMPT = "token_prompt"
    """Prompts as token ids."""
    CANCEL = "cancel"
    SEED = "seed"
    """A request's own seed decides its draws."""
    IGNORE_EOS = "ignore_eos"
    STOP_TOKENS = "stop_tokens"
    STOP_STRINGS = "stop_strings"
    SHOWN_STOP_STRINGS = "shown_stop_strings"
    """A request can ask for its stop string at the end of the text."""
    MIN_TOKENS = "min_tokens"
    """No end of sequence, stop token or stop string ends an output before so many tokens."""
    OWN_EOS = "own_eos"
    """A request's own end-of-sequence ids count: Request.eos_token_ids."""
    STREAMING = "streaming"
    """Answers come in pieces or whole, as a request asks: SamplingParams.output_kind."""
    SAMPLES = "samples"
    """n > 1: several samples of one prompt."""
    PRIORITY = "priority"
    CACHE_SALT = "cache_salt"
    TEMPERATURE = "temperature"
    """Sampling at temperatures above 0; without it an engine is greedy only."""
    PENALTIES = "penalties"
    """Penalties, biases and masks of logits, by request."""
    CHOSEN_LOGPROB = "chosen_logprob"
    TOPK_LOGPROB = "topk_logprob"
    PROMPT_LOGPROBS = "prompt_logprobs"
    RAW_LOGITS = "raw_logits"
    SUPPORT_MASK = "support_mask"
    SCORE = "score"
    """Teacher forcing: `Session.score`."""
    CACHED_TOKEN_COUNT = "cached_token_count"
    PREFIX_CACHE = "prefix_cache"
    """It has a prefix cache, and it is on."""
    RESET_CACHE = "reset_cache"
    KV_EVENTS = "kv_events"
    STEP_TRACE = "step_trace"
    """Records of its steps: `Session.records`."""
    BLOCK_TABLES = "block_tables"
    COPIES = "copies"
    POOL_VIEW = "pool_view"
    COUNTERS = "counters"
    """Books after each event, in the records."""
    POLICY = "policy"
    """It decides by docs/policy.md, so that its records can be held against that text."""
    NOT_THE_TWIN = "not_the_twin"
    """It is another program than the twin, so that comparing the two says something."""
    STEP_CONTROL = "step_control"
    FORCE_PREEMPT = "force_preempt"
    FORCE_TOKENS = "force_tokens"
    VIRTUAL_CLOCK = "virtual_clock"
    READ_KV = "read_kv"
    POISON = "poison"
    FAULT_INJECTION = "fault_injection"
    """A fault may strike a session: SessionConfig.fault."""
    FAILING_ROWS = "failing_rows"
    """Rows of chosen requests can be made to give no token: SessionConfig.failing_requests."""
    NOISE_KNOWN = "noise_known"
    """The noise of a draw is a known function of seed, position and token."""
    ATTENTION = "attention"
    """Its attention can be asked directly: `AttendingAdapter.attend`."""
    COMPONENTS = "components"
    """It is the engine of this package, whose parts can be tried on their own."""
    CHECKPOINT = "checkpoint"
    """It can be opened on a checkpoint that the suite makes (SessionConfig.model)."""
    INVARIANT_RUN = "invariant.run"
    """Bits do not depend on the run; likewise below: on the batch, the chunks, the placement of
    blocks, what is cached, preemptions."""
    INVARIANT_BATCH = "invariant.batch"
    INVARIANT_CHUNK = "invariant.chunk"
    INVARIANT_LAYOUT = "invariant.layout"
    INVARIANT_CACHE_HISTORY = "invariant.cache_history"
    INVARIANT_PREEMPT = "invariant.preempt"


class Support(msgspec.Struct, frozen=True):
    """Whether an engine has a capability; `reason` says why not, or under which condition."""

    status: Literal["yes", "no", "conditional"]
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status != "yes" and not self.reason:
            raise ValueError(f"a capability that is {self.status!r} needs a reason")


YES = Support("yes")


def no(reason: str) -> Support:
    return Support("no", reason)


def conditional(reason: str) -> Support:
    """There in some sessions, as `reason` says; counts as there until a session shows otherwise."""
    return Support("conditional", reason)


class Capabilities(msgspec.Struct, frozen=True):
    """What one engine supports. A flag that is not named is not supported, for want of a claim."""

    support: dict[Flag, Support]

    @classmethod
    def of(
        cls, flags: Iterable[Flag], others: Mapping[Flag, Support] | None = None
    ) -> "Capabilities":
        """`flags` are supported; `others` says why the rest is not, or when."""
        return cls({**dict.fromkeys(flags, YES), **(others or {})})

    def of_flag(self, flag: Flag) -> Support:
        return self.support.get(flag, Support("no", "the adapter does not claim it"))

    def has(self, *flags: Flag) -> bool:
        return all(self.of_flag(flag).status != "no" for flag in flags)

    def missing(self, needs: Iterable[Flag]) -> list[tuple[Flag, str]]:
        """Those of `needs` that are not there, each with the reason."""
        lacking = (flag for flag in needs if not self.has(flag))
        return [(flag, self.of_flag(flag).reason) for flag in lacking]

    @property
    def level(self) -> Level:
        """The highest level that the flags reach."""
        return max(
            (level for level, flags in _LEVELS.items() if self.has(*flags)), default=Level.TEXT
        )


_LEVELS: dict[Level, tuple[Flag, ...]] = {
    Level.TEXT: (Flag.TEXT,),
    Level.TOKENS: (Flag.TOKEN_IDS,),
    Level.SCORES: (Flag.CHOSEN_LOGPROB,),
    Level.CACHE_EVENTS: (Flag.KV_EVENTS,),
    Level.STEPS: (Flag.STEP_TRACE, Flag.BLOCK_TABLES),
    Level.MEMORY: (Flag.READ_KV, Flag.POISON),
    Level.CONTROL: (Flag.STEP_CONTROL, Flag.STEP_TRACE),
}
"""What reaches a level."""
