"""When two answers agree: tokens, bits where promised, near ties where rounding explains them."""

import pytest

from pagetwin.conformance.experiments.agreement import Agreement, compare
from pagetwin.conformance.experiments.asking import Answer
from pagetwin.conformance.observation import Scored

TOKENS = (4, 9, 2)
GAP = 4e-4


def answer(
    tokens: tuple[int, ...] = TOKENS, *, shift: float = 0.0, reason: str = "length"
) -> Answer:
    """Token 7 is everywhere behind the chosen one by GAP."""
    logprobs = tuple(-1.0 + shift for _ in tokens)
    tops = tuple((Scored(token, -1.0 + shift), Scored(7, -1.0 + shift - GAP)) for token in tokens)
    return Answer(tokens, logprobs, tops, reason)


def agree(one: Answer, other: Answer, **changes: object) -> Agreement:
    knobs = {"dtype": "float32", "same_bits": False, "is_greedy": True} | changes
    return compare(one, other, **knobs)  # type: ignore[arg-type]


def test_equal_answers_agree_over_all_tokens() -> None:
    assert agree(answer(), answer(), same_bits=True) == Agreement(3, 0, None)


def test_a_turn_at_a_near_tie_is_counted_and_ends_the_comparison() -> None:
    assert agree(answer(), answer((4, 7, 1, 1))) == Agreement(1, 1, None)


@pytest.mark.parametrize(
    "changes", [{"same_bits": True}, {"is_greedy": False}, {"dtype": "float64"}, {"dtype": ""}]
)
def test_the_same_turn_is_a_difference_where_rounding_is_no_excuse(
    changes: dict[str, object],
) -> None:
    difference = agree(answer(), answer((4, 7, 2)), **changes).difference
    assert difference == "output token 1 is 9 in one and 7 in the other"


def test_a_turn_to_a_token_that_was_not_near_is_a_difference() -> None:
    assert agree(answer(), answer((4, 8, 2))).difference is not None


def test_scores_may_move_by_rounding_only() -> None:
    assert agree(answer(), answer(shift=1e-5)).difference is None
    assert "rounding explains" in str(agree(answer(), answer(shift=0.1)).difference)
    promised = agree(answer(), answer(shift=1e-9), same_bits=True).difference
    assert "equal bits are promised" in str(promised)


def test_a_shorter_answer_and_another_reason_are_differences() -> None:
    assert agree(answer(), answer(TOKENS[:2])).difference is not None
    assert agree(answer(), answer(reason="stop")).difference is not None
    nothing = Answer((), (), (), "")
    assert agree(answer(), nothing).difference is not None
    assert agree(nothing, Answer((), (), (), "refused")).difference is not None
