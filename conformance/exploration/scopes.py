"""The scopes that are explored: every configuration that decides differently, in small."""

from collections.abc import Iterator
from typing import Any, Literal

from pagetwin.conformance.exploration.scope import Scope, make_scope
from pagetwin.engine.config import PreemptionMode

Size = Literal["quick", "full"]

MODES: tuple[PreemptionMode, ...] = ("recompute", "swap")
POLICIES = ("fcfs", "priority")

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("forks", {"num_samples": (1, 2), "prompt_lengths": (2, 3), "max_tokens": 2}),
    ("forks-swap", {"num_samples": (1, 2), "prompt_lengths": (3,), "mode": "swap"}),
    ("forks-async", {"num_samples": (1, 2), "prompt_lengths": (3,), "asynchronous": True}),
    ("forced", {"preemptions": True}),
    ("forced-swap", {"preemptions": True, "mode": "swap"}),
    ("forced-async", {"preemptions": True, "asynchronous": True, "prompt_lengths": (3,)}),
    (
        "forced-forks",
        {
            "preemptions": True,
            "aborts": False,
            "resets": False,
            "num_samples": (1, 2),
            "max_tokens": 2,
        },
    ),
    ("failures", {"failures": True, "asynchronous": True, "max_tokens": 2}),
    ("no-chunks", {"enable_chunked_prefill": False, "max_num_batched_tokens": 8}),
    ("short-chunks", {"long_prefill_token_threshold": 1}),
    ("watermark", {"watermark_blocks": 1}),
    ("lookahead", {"num_lookahead_slots": 1}),
    ("no-caching", {"enable_prefix_caching": False, "enable_partial_hits": False}),
    ("no-partial-hits", {"enable_partial_hits": False}),
    ("window", {"sliding_window": 2}),
    ("host-pool-of-one", {"mode": "swap", "num_host_blocks": 1}),
    ("three-blocks", {"num_blocks": 4, "max_model_len": 6}),
    ("blocks-of-one", {"block_size": 1, "max_model_len": 4, "prompt_lengths": (1, 2, 3)}),
)
"""What two requests are explored with, beside the policies and modes: each with one knob off its
usual value."""


def scopes(size: Size = "full") -> list[Scope]:
    """`full`: two and three requests under both policies and modes, synchronous or not; two that
    end anywhere, and with every other knob. `quick`: two short ones on three
    blocks, and the other knobs, for CI. In both three that wait for prefixes."""
    return list(_quick() if size == "quick" else _full())


def _quick() -> Iterator[Scope]:
    for name, knobs in _configurations():
        yield make_scope(f"quick-{name}", max_requests=2, **_short(knobs))
    for variant, knobs in VARIANTS:
        short = {"prompt_lengths": (3,), "max_tokens": 2, "early_ends": False, **knobs}
        yield make_scope(f"quick-{variant}", max_requests=2, **short)
    yield from _waiting("quick", max_tokens=1, max_steps=2)


def _short(knobs: dict[str, Any]) -> dict[str, Any]:
    lengths = (3,) if knobs["policy"] == "priority" else (2, 3)
    return {
        "prompt_lengths": lengths,
        "max_tokens": 2,
        "num_blocks": 4,
        "max_model_len": 6,
        **knobs,
    }


def _full() -> Iterator[Scope]:
    for name, knobs in _configurations():
        yield make_scope(f"two-{name}", max_requests=2, **_all_lengths(knobs))
    for variant, knobs in VARIANTS:
        yield make_scope(f"two-{variant}", max_requests=2, **{"prompt_lengths": (2, 3), **knobs})
    for name, knobs in _configurations():
        yield make_scope(f"three-{name}", early_ends=False, **_beside_others(knobs))
    yield from _waiting("three", max_tokens=2)


def _waiting(prefix: str, **extent: Any) -> Iterator[Scope]:
    """Three requests, so that one can be passed over and another admitted."""
    for name, asynchronous in (("waiting", False), ("waiting-async", True)):
        yield make_scope(
            f"{prefix}-{name}",
            wait_for_prefix=True,
            asynchronous=asynchronous,
            prompt_lengths=(3,),
            early_ends=False,
            **extent,
        )


def _all_lengths(knobs: dict[str, Any]) -> dict[str, Any]:
    """Under priority each length comes twice; two of them are enough there."""
    lengths = (2, 3) if knobs["policy"] == "priority" else (1, 2, 3, 4)
    return {"prompt_lengths": lengths, **knobs}


def _beside_others(knobs: dict[str, Any]) -> dict[str, Any]:
    """Of three requests: prompts below and above a block, or, where priorities or results that
    are late multiply the schedules, only above."""
    if knobs["policy"] == "priority":
        return {"prompt_lengths": (3,), "max_tokens": 2, **knobs}
    return {"prompt_lengths": (3,) if knobs["asynchronous"] else (1, 3), **knobs}


def _configurations() -> Iterator[tuple[str, dict[str, Any]]]:
    for policy in POLICIES:
        for mode in MODES:
            for asynchronous in (False, True):
                name = f"{policy}-{mode}{'-async' if asynchronous else ''}"
                yield name, {"policy": policy, "mode": mode, "asynchronous": asynchronous}
