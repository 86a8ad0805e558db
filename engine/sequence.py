"""Our state for a request: a group of sequences, each with its tokens and its place in life."""

import enum
from typing import Any

from pagetwin.engine.config import CacheConfig
from pagetwin.engine.prefix_keys import KeyChain
from pagetwin.engine.request import Request, sequence_id


class SequenceStatus(enum.Enum):
    """Where a sequence is. Allowed moves are in TRANSITIONS.

    WAITING --> RUNNING --> FINISHED_STOPPED | FINISHED_LENGTH | FINISHED_ABORTED | FINISHED_ERROR
                 ^   |
                 |   +----> PREEMPTED (recompute) --+
                 |   +----> SWAPPED ----------------+
                 +----------------------------------+

    The states that are not running may end too, aborted or (beams) with an error. A group's later
    samples are made by a fork, and start as RUNNING.
    """

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    SWAPPED = "swapped"
    FINISHED_STOPPED = "finished_stopped"
    FINISHED_LENGTH = "finished_length"
    FINISHED_ABORTED = "finished_aborted"
    FINISHED_ERROR = "finished_error"

    @property
    def is_finished(self) -> bool:
        return self in _FINISHED


_FINISHED = frozenset(
    {
        SequenceStatus.FINISHED_STOPPED,
        SequenceStatus.FINISHED_LENGTH,
        SequenceStatus.FINISHED_ABORTED,
        SequenceStatus.FINISHED_ERROR,
    }
)

_CUT_SHORT = frozenset({SequenceStatus.FINISHED_ABORTED, SequenceStatus.FINISHED_ERROR})

TRANSITIONS: dict[SequenceStatus, frozenset[SequenceStatus]] = {
    SequenceStatus.WAITING: _CUT_SHORT | {SequenceStatus.RUNNING},
    SequenceStatus.RUNNING: _FINISHED | {SequenceStatus.PREEMPTED, SequenceStatus.SWAPPED},
    SequenceStatus.PREEMPTED: _CUT_SHORT | {SequenceStatus.RUNNING},
    SequenceStatus.SWAPPED: _CUT_SHORT | {SequenceStatus.RUNNING},
    **dict.fromkeys(_FINISHED, frozenset[SequenceStatus]()),
}


class Sequence:
    """One sample of a request while it lives.

    `token_ids` are the known tokens, prompt and output. With a step in flight the sequence may
    also be due a token that is not known yet; `num_tokens` counts it (docs/policy.md P5.3a).
    """

    __slots__ = (
        "group",
        "has_row",
        "is_beam",
        "keys",
        "last_step",
        "needs_introduction",
        "num_computed_tokens",
        "num_placeholders",
        "num_prompt_tokens",
        "order_key",
        "sample_index",
        "seq_id",
        "status",
        "token_ids",
    )

    def __init__(self, group: "SequenceGroup", sample_index: int, cache: CacheConfig) -> None:
        request = group.request
        self.group = group
        self.is_beam = request.beam_search is not None
        self.sample_index = sample_index
        self.seq_id = sequence_id(request.request_id, sample_index)
        self.order_key = (*group.order_key, sample_index)
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_placeholders = 0
        self.status = SequenceStatus.WAITING
        self.keys = KeyChain(request, cache)
        self.has_row = False
        """Whether the executor keeps a row under this id."""
        self.needs_introduction = True
        """Whether that row is missing or void, so that the next plan must give everything."""
        self.last_step = -1
        """Number of the last plan that scheduled it."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_placeholders

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def weight(self) -> int:
        """What the sequence counts towards max_num_seqs: all its samples until they fork."""
        return 1 if self.group.forked else self.group.request.num_samples

    def move_to(self, status: SequenceStatus) -> None:
        """Changes the status; AssertionError on a move that TRANSITIONS does not allow."""
        allowed = status in TRANSITIONS[self.status]
        assert allowed, f"{self.seq_id} cannot go from {self.status.name} to {status.name}"
        self.status = status

    def fork(self, sample_index: int, cache: CacheConfig) -> "Sequence":
        """Another sample that shares all tokens so far; the caller forks the block table."""
        child = Sequence(self.group, sample_index, cache)
        child.token_ids = self.token_ids.copy()
        child.num_computed_tokens = self.num_computed_tokens
        child.keys = self.keys.copy()
        child.status = self.status
        return child

    def __repr__(self) -> str:
        return (
            f"Sequence({self.seq_id}, {self.status.name}, "
            f"computed {self.num_computed_tokens} of {self.num_tokens})"
        )


class SequenceGroup:
    """The live sequences of one request: one until it forks, then one per sample or beam."""

    __slots__ = (
        "first_stop",
        "forked",
        "introduced",
        "order_key",
        "request",
        "sequences",
        "stop_reasons",
        "token_limit",
    )

    def __init__(
        self, request: Request, order_key: tuple[Any, ...], token_limit: int, cache: CacheConfig
    ) -> None:
        self.request = request
        self.order_key = order_key
        self.token_limit = token_limit
        """Tokens, prompt and output, at which each of its sequences ends at the latest."""
        params = request.sampling_params
        self.first_stop = request.num_prompt_tokens + params.min_tokens
        """Tokens that no stop token or stop string ends (P5.1a)."""
        self.stop_reasons: dict[int, int | None] = {token: token for token in params.stop_token_ids}
        """The tokens that end a sequence, with the reason to report; None for EOS."""
        if not params.ignore_eos:
            self.stop_reasons.update(dict.fromkeys(request.eos_token_ids))
        self.forked = request.num_samples == 1 and request.beam_search is None
        self.introduced = False
        """Whether a plan has carried the request to the executor."""
        self.sequences = [Sequence(self, 0, cache)]
