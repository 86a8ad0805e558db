"""What a demo run found, as plain data: page, summary.json and exit code come from it alone."""

from typing import Literal

import msgspec

from pagetwin.engine.config import CacheConfig, SchedulerConfig

SCHEMA = "pagetwin.demo/1"

MUST_HAPPEN = (
    "preemptions_recompute",
    "preemptions_swap",
    "full_block_hits",
    "partial_hits",
    "evictions",
    "cow_copies",
    "aborts",
)
"""Fields of `Summary` that count an event; a run in which one stays 0 has shown nothing of it."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The run in numbers, and all that is needed to run it again: the content of summary.json."""

    schema: str = SCHEMA
    agreed: bool
    """No difference anywhere, no invariant broken, and nothing left unexercised."""
    not_exercised: tuple[str, ...] = ()
    """Names of MUST_HAPPEN that stayed 0."""

    requests: int
    steps: int
    decisions_compared: int
    decision_differences: int
    block_tables_compared: int
    block_table_differences: int
    counters_compared: int
    counter_differences: int
    invariants_checked: int
    invariant_violations: int
    tokens_compared: int
    token_mismatches: int
    near_ties: int
    """Tokens that differ where the oracle's two best logits are closer than `near_tie_bound`."""
    near_tie_bound: float
    """Twice the errors that engine and oracle may make, in logits; measured, see the oracle."""
    oracle_error: float
    """Largest measured difference between the oracle's float32 and float64 logits."""
    smallest_margin: float
    """Smallest gap between the oracle's two best logits, over all compared tokens."""

    preemptions_recompute: int
    preemptions_swap: int
    prefix_hit_tokens: int
    full_block_hits: int
    partial_hits: int
    evictions: int
    cow_copies: int
    aborts: int

    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    """Output tokens over the seconds that the engine spent in its steps."""
    step_p50_ms: float
    step_p95_ms: float
    wall_s: float
    phases_s: dict[str, float]
    """Seconds of each part of the demo, in order."""

    seed: int
    trace: str
    model: str
    cache: CacheConfig
    scheduler: SchedulerConfig
    versions: dict[str, str]
    machine: dict[str, str]


class StepPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The levels after one step, and what happened in it or just before it."""

    step: int
    held_blocks: int
    cached_free_blocks: int
    """Free blocks whose content the prefix cache would still hit."""
    free_blocks: int
    """Free blocks with nothing to hit."""
    waiting: int
    running: int
    swapped: int
    prompt_tokens: int
    """Scheduled tokens of sequences that were given more than one, or that drew no token."""
    decode_tokens: int
    duration_s: float
    prefix_hit_tokens: int = 0
    partial_hits: int = 0
    evictions: int = 0
    cow_copies: int = 0
    preemptions_recompute: int = 0
    preemptions_swap: int = 0
    aborts: int = 0


class BlockSpan(msgspec.Struct, frozen=True):
    """One device block's state during the steps [first_step, end_step).

    `owners` are the sequences that hold the block, sorted; for a cached block that nobody
    holds, the one sequence that filled it. A free block has no span.
    """

    block_id: int
    first_step: int
    end_step: int
    state: Literal["held", "cached"]
    owners: tuple[str, ...]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the engine-vs-twin table."""

    name: str
    compared: int
    differences: int


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing on which two sides disagree; both texts show only what differs."""

    what: str
    where: str
    engine: str
    other: str
    other_side: str


class ParityRow(msgspec.Struct, frozen=True, kw_only=True):
    """One greedy request, against the oracle."""

    request_id: str
    tokens_compared: int
    mismatches: int
    near_ties: int
    opening: str = ""
    """The first sentence of the prompt's own text."""
    output_text: str = ""


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request's life. Steps are None for what never happened."""

    request_id: str
    family: str
    """The group of requests that share a prefix with it."""
    priority: int
    num_samples: int
    greedy: bool
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Prompt tokens that its first admission found in the prefix cache."""
    submitted_step: int
    first_scheduled_step: int | None
    ended_step: int | None
    preemptions: int
    finish: str


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the page shows."""

    summary: Summary
    steps: tuple[StepPoint, ...]
    spans: tuple[BlockSpan, ...]
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]
    """The first ones found, in order; the summary has the totals."""
    parity: tuple[ParityRow, ...]
    requests: tuple[RequestRow, ...]
    command: str
    """The command line that repeats this run."""


def concluded(summary: Summary) -> Summary:
    """The same counts with the conclusion drawn: what did not happen, and whether all agree."""
    missing = tuple(name for name in MUST_HAPPEN if getattr(summary, name) == 0)
    wrong = (
        summary.decision_differences
        + summary.block_table_differences
        + summary.counter_differences
        + summary.invariant_violations
        + summary.token_mismatches
    )
    return msgspec.structs.replace(summary, agreed=not wrong and not missing, not_exercised=missing)


def explain(result: DemoResult) -> str | None:
    """The first thing that is wrong with a run, for a person; None if nothing is."""
    if result.differences:
        where = result.differences[0].where
        together = [one for one in result.differences if one.where == where][:_MAX_EXPLAINED]
        return "\n".join([f"first difference, at {where}:", *map(_both_sides, together)])
    if result.summary.not_exercised:
        names = ", ".join(result.summary.not_exercised)
        return (
            f"this run did not exercise {names}, so it shows nothing about it; "
            "use more requests, another seed or another trace"
        )
    return None


_MAX_EXPLAINED = 5


def _both_sides(difference: Difference) -> str:
    width = max(len("engine"), len(difference.other_side))
    return (
        f"  {difference.what}\n"
        f"    {'engine':{width}}  {difference.engine}\n"
        f"    {difference.other_side:{width}}  {difference.other}"
    )
