"""Scopes: how much is explored exhaustively, under which configuration.

Small scopes are enough for most scheduler and allocator bugs (Jackson's small scope hypothesis):
what goes wrong with a hundred requests mostly goes wrong with three on four blocks.
"""

from typing import Any

import msgspec

from pagetwin.engine.config import CacheConfig, PreemptionMode, SchedulerConfig

EOS = 9
"""The token that ends a sequence; no prompt has it."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that may happen, and for how long.

    Requests are submitted in any of the `prompt_lengths` and in every shape up to renaming of
    tokens: each prompt token is one that some text so far has after the same prefix, or a new one.
    Each is named, and arrives, in the order of submission; under priority each of `priorities` is
    tried. Output is greedy: token 0 after any text (sample i of n gives token i), which is also
    the first prompt's that comes there; or, where `early_ends`, the end at any position before
    max_tokens.
    """

    name: str
    cache: CacheConfig
    scheduler: SchedulerConfig
    max_requests: int = 3
    max_steps: int = 6
    prompt_lengths: tuple[int, ...] = (1, 2, 3, 4)
    max_tokens: int = 3
    num_samples: tuple[int, ...] = (1,)
    priorities: tuple[int, ...] = (0,)
    early_ends: bool = True
    failures: bool = False
    """Each token may also be missing, with a reason (docs/policy.md P5.1c)."""
    aborts: bool = True
    preemptions: bool = False
    """Each live request may also be forced to be preempted (docs/policy.md P3.5)."""
    resets: bool = True


def make_scope(
    name: str,
    *,
    mode: PreemptionMode = "recompute",
    policy: str = "fcfs",
    asynchronous: bool = False,
    **knobs: Any,
) -> Scope:
    """Three requests on four blocks of two tokens, budget and max_model_len to match; `knobs` of
    the scope or of either configuration change that."""
    cache: dict[str, Any] = {"num_blocks": 5, "block_size": 2}
    cache["num_host_blocks"] = 3 if mode == "swap" else 0
    limits: dict[str, Any] = {"max_model_len": 8, "max_num_seqs": 3, "max_num_batched_tokens": 4}
    extent: dict[str, Any] = {"priorities": (0, 1) if policy == "priority" else (0,)}
    for knob, value in knobs.items():
        owners = ((CacheConfig, cache), (SchedulerConfig, limits), (Scope, extent))
        owner = next(own for kind, own in owners if knob in kind.__struct_fields__)
        owner[knob] = value
    return Scope(
        name=name,
        cache=CacheConfig(**cache),
        scheduler=SchedulerConfig(
            **limits, policy=policy, preemption_mode=mode, async_scheduling=asynchronous
        ),
        **extent,
    )
