"""What a foreign policy allows: nondeterministic where its engine promises nothing."""

import msgspec


class Specification(msgspec.Struct, frozen=True, kw_only=True):
    """A policy as far as it is promised. The trace resolves what is left open; it is refused where
    no choice that the policy allows matches."""

    id: str
    admits_in_order: bool
    """Waiting requests are admitted first come, first served; none overtakes one that waits.
    A preempted one stands before all that never ran, the last to be preempted first."""
    preempts_last: bool
    """The victims are the last that were admitted."""
    shares_within_step: bool = False
    """A block can be hit in the step that fills it: each layer writes the whole step's keys and
    values before any query reads."""
    may_starve: bool = False
    """A step may leave out what runs, or has found its prefix, for want of a block; what that needs
    counts when another is preempted."""
    samples_are_requests: bool = False
    """Each sample of a request is scheduled as a request of its own, from the beginning."""
    max_lookahead_blocks: int = 0
    """Blocks that a table may have beyond those of its tokens."""


VLLM_V1_FCFS = Specification(
    id="vllm-v1-fcfs",
    admits_in_order=True,
    preempts_last=True,
    shares_within_step=True,
    samples_are_requests=True,
)
HF_FIFO = Specification(id="hf-fifo", admits_in_order=False, preempts_last=False, may_starve=True)
"""transformers skips what does not fit and goes on with the next; victims are the newest of those
that could not get a block, not of all."""
ANY = Specification(id="any", admits_in_order=False, preempts_last=False)
"""Paged memory alone, whatever the policy."""

_BY_ENGINE = {"vllm": VLLM_V1_FCFS, "transformers-continuous-batching": HF_FIFO}


def specification_of(engine: str) -> Specification:
    """By the engine's name in the trace's header."""
    return _BY_ENGINE.get(engine, ANY)
