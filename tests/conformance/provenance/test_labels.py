"""Prompts say where each token stands, and workloads have what they are for."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.conformance.provenance.labels import Labels, Slot
from pagetwin.conformance.provenance.recipe import NUM_SPECIAL_TOKENS
from pagetwin.conformance.provenance.workload import WorkloadShape, draw_rounds

LABELS = Labels(vocab_size=4096, span=80)
SHAPE = WorkloadShape()


@given(st.integers(0, 200), st.integers(1, 40))
def test_labels_and_tokens_are_one_to_one(free: int, span: int) -> None:
    labels = Labels(vocab_size=NUM_SPECIAL_TOKENS + 3 * span + free % span, span=span)
    slots = [labels.slot(token) for token in range(labels.vocab_size)]
    named = [slot for slot in slots if slot is not None]
    assert named == [Slot(owner, position) for owner in range(3) for position in range(span)]
    assert [slots[labels.token(slot)] for slot in named] == named


def test_slots_without_a_label_are_refused() -> None:
    with pytest.raises(ValueError, match=r"slot \(51, 0\) is outside the 51 owners"):
        LABELS.token(Slot(51, 0))


@given(st.integers(0, 10_000))
def test_workloads_keep_to_their_lengths_and_share_by_position(seed: int) -> None:
    rounds = draw_rounds(Random(seed), LABELS, SHAPE, min_prompt_tokens=6)
    requests = [request for one in rounds for request in one]
    assert len({request.request_id for request in requests}) == len(requests) == 24
    for request in requests:
        assert 6 <= request.num_prompt_tokens <= LABELS.span
        slots = [LABELS.slot(token) for token in request.prompt_token_ids]
        assert [slot.position for slot in slots if slot] == list(range(len(slots)))


def test_workloads_repeat_prompts_share_prefixes_and_meet_block_edges() -> None:
    seen: Counter[str] = Counter()
    for seed in range(20):
        rounds = draw_rounds(Random(seed), LABELS, SHAPE, min_prompt_tokens=6)
        prompts = [request.prompt_token_ids for one in rounds for request in one]
        seen["whole"] += len(prompts) - len(set(prompts))
        seen["prefix"] += len(prompts) - len({prompt[:6] for prompt in prompts})
        for prompt in prompts:
            seen[f"edge {len(prompt) % SHAPE.block_size}"] += 1
    assert min(seen["whole"], seen["prefix"] - seen["whole"]) > 20
    assert all(seen[f"edge {rest}"] > 50 for rest in (0, 1, 15))


def test_workloads_that_need_more_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit a vocabulary of 4096"):
        draw_rounds(Random(0), Labels(vocab_size=4096, span=400), SHAPE, min_prompt_tokens=6)
