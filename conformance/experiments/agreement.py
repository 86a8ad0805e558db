"""When two answers to one request agree: tokens always, bits where they are promised.

Where an engine does not promise equal bits, rounding may turn a choice between two tokens that are
almost equally likely; the engine's own log-probabilities then say so. After such a turn the two
answers are about different texts, and nothing more is compared.
"""

from typing import NamedTuple

from pagetwin.conformance.experiments.asking import Answer

NEAR_TIES = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 2.5e-1}
"""By dtype: how far another order of rounding may move a log-probability, or a gap between two."""


class Agreement(NamedTuple):
    num_compared: int
    """Tokens."""
    near_ties: int
    difference: str | None
    """What differs, in words; None if they agree."""


def compare(
    first: Answer, second: Answer, *, dtype: str, same_bits: bool, is_greedy: bool
) -> Agreement:
    """Compares two answers to one context. A drawn token's noise hides how near a tie was, so
    those must be equal whenever they are compared at all."""
    if first.reason != second.reason and not (first.token_ids or second.token_ids):
        return Agreement(0, 0, f"one ended with {first.reason!r}, the other {second.reason!r}")
    pairs = list(zip(first.token_ids, second.token_ids, strict=False))
    for i, (one, other) in enumerate(pairs):
        if one != other:
            if is_greedy and not same_bits and _is_near_tie(first, i, other, dtype):
                return Agreement(i, 1, None)
            return Agreement(i, 0, f"output token {i} is {one} in one and {other} in the other")
        far = _scores_differ(first.logprobs[i], second.logprobs[i], dtype, same_bits=same_bits)
        if far is not None:
            return Agreement(i, 0, f"the log-probability of output token {i} is {far}")
    if len(first.token_ids) != len(second.token_ids) or first.reason != second.reason:
        return Agreement(
            len(pairs),
            0,
            f"one has {len(first.token_ids)} tokens and ended with {first.reason!r}, the other "
            f"{len(second.token_ids)} and {second.reason!r}",
        )
    return Agreement(len(pairs), 0, None)


def _scores_differ(
    one: float | None, other: float | None, dtype: str, *, same_bits: bool
) -> str | None:
    """How, in words, if they differ by more than is allowed; scores that are not there agree."""
    if one is None or other is None or one == other:
        return None
    shown = f"{one!r} in one and {other!r} in the other"
    if same_bits:
        return f"{shown}, though equal bits are promised"
    limit = _near_tie(dtype)
    if limit is None or abs(one - other) <= limit:
        return None
    return f"{shown}; rounding explains {limit:g}"


def _near_tie(dtype: str) -> float | None:
    return NEAR_TIES.get(dtype.removeprefix("torch."))


def _is_near_tie(answer: Answer, index: int, other: int, dtype: str) -> bool:
    """Whether the answer's own scores put `other` as near to its choice as rounding goes."""
    scores = {one.token_id: one.logprob for one in answer.tops[index]}
    own = answer.logprobs[index]
    limit = _near_tie(dtype)
    if own is None or limit is None or other not in scores:
        return False
    return own - scores[other] <= limit
