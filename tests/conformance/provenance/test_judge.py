"""The judge sees each wrong read, and only those, and says whose slot it was."""

from random import Random

from pagetwin.conformance.observation import AnyObservation, Opened, Submitted, TokenSeen
from pagetwin.conformance.provenance.judge import judge, violations
from pagetwin.conformance.provenance.labels import Labels, Slot

LABELS = Labels(vocab_size=8192, span=128)
OFFSET = 64


def _observed(**outputs: list[int]) -> list[AnyObservation]:
    """Requests with 97 prompt tokens: r16 and r31 share the first 32 of prefix 2."""
    seen: list[AnyObservation] = [Opened(engine="test")]
    for request_id, output in outputs.items():
        prompt = LABELS.prompt((2, 0, 32), (int(request_id[1:]), 32, 98))
        seen.append(Submitted(request_id=request_id, prompt_token_ids=prompt))
        seen += [TokenSeen(request_id=request_id, token_id=token) for token in output]
    return seen


def _right(owner: int, count: int) -> list[int]:
    return [LABELS.token(Slot(owner, 97 - OFFSET + index)) for index in range(count)]


def test_right_tokens_are_right_to_the_end_of_a_long_output() -> None:
    output = _right(16, 65)
    output += output[:40]
    seen = judge(_observed(r16=output), offset=OFFSET)
    assert seen.wrong == ()
    assert seen.num_tokens == 105
    assert seen.goals == {
        "reads of slots in one prompt": 65,
        "reads of generated tokens' slots": 40,
    }


def test_a_wrong_read_names_both_slots() -> None:
    wrong = LABELS.token(Slot(16, 34))
    observed = _observed(r16=_right(16, 3), r31=[wrong, *_right(31, 3)[1:]])
    [found] = violations(judge(observed, offset=OFFSET), LABELS, observed)
    assert found.property_id == "mem.provenance"
    assert found.message == ("at position 97 read the slot of (req 16, pos 34), should be (31, 33)")
    assert dict(found.witness) == {
        "request": "r31",
        "sample": "0",
        "prompts_with_what_was_read": "r16",
    }


def test_what_is_copied_from_a_wrong_token_is_not_wrong_again() -> None:
    output = _right(16, 65)
    output[0] = LABELS.token(Slot(16, 90))
    output += output[:5]
    assert len(judge(_observed(r16=output), offset=OFFSET).wrong) == 1


def test_any_single_change_is_seen() -> None:
    random = Random(0)
    for _ in range(50):
        output = _right(16, 20)
        index = random.randrange(20)
        output[index] = random.choice([t for t in range(4096) if t != output[index]])
        observed = _observed(r16=output)
        [one] = judge(observed, offset=OFFSET).wrong
        assert one.position == 97 + index
        assert violations(judge(observed, offset=OFFSET), LABELS, observed)


def test_shared_slots_count_as_shared() -> None:
    observed = _observed(r16=[], r31=[LABELS.token(Slot(2, 27))])
    seen = judge(observed, offset=70)
    assert seen.goals == {"reads of slots in many prompts": 1}
    assert seen.wrong == ()
