"""Judges what a provenance checkpoint said: was each token read from the slot it should be?"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pagetwin.conformance.observation import AnyObservation, Submitted, output_tokens
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.provenance.labels import Labels

PROPERTY_ID = "mem.provenance"


class WrongRead(msgspec.Struct, frozen=True, kw_only=True):
    """One generated token that names another slot than the one that was to be read."""

    request_id: str
    sample_index: int
    position: int
    """Of the token that read: it stood last when the wrong one was generated."""
    expected_token: int
    found_token: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's outputs show."""

    num_tokens: int
    """Generated tokens that were judged."""
    wrong: tuple[WrongRead, ...]
    goals: Counter[str]
    """Reads of slots that the request computed alone, shares, or generated."""


def judge(observed: Sequence[AnyObservation], *, offset: int) -> Provenance:
    """Every output token of every request against the token `offset` slots before its reader.

    The text of a request is taken as it was seen, so one wrong read is told once, and what is
    copied from it later is not wrong again. Prompts must have more than `offset` tokens.
    """
    prompts = {
        one.request_id: one.prompt_token_ids for one in observed if isinstance(one, Submitted)
    }
    num_owners = Counter(token for prompt in prompts.values() for token in prompt)
    wrong: list[WrongRead] = []
    goals: Counter[str] = Counter()
    for request_id, samples in output_tokens(observed).items():
        prompt = prompts[request_id]
        for sample_index, output in samples.items():
            text = [*prompt, *output]
            for position in range(len(prompt) - 1, len(text) - 1):
                slot = position - offset
                goals[_kind(slot, len(prompt), num_owners[text[slot]])] += 1
                if text[position + 1] != text[slot]:
                    wrong.append(
                        WrongRead(
                            request_id=request_id,
                            sample_index=sample_index,
                            position=position,
                            expected_token=text[slot],
                            found_token=text[position + 1],
                        )
                    )
    return Provenance(num_tokens=goals.total(), wrong=tuple(wrong), goals=goals)


def _kind(slot: int, num_prompt_tokens: int, num_owners: int) -> str:
    if slot >= num_prompt_tokens:
        return "reads of generated tokens' slots"
    return "reads of slots in one prompt" if num_owners == 1 else "reads of slots in many prompts"


def violations(
    provenance: Provenance, labels: Labels, observed: Iterable[AnyObservation]
) -> list[Violation]:
    """Wrong reads in words, in the order of the observations' requests."""
    holders = _holders(observed)
    return [
        violation(
            PROPERTY_ID,
            -1,
            f"at position {one.position} read {_name(labels, one.found_token)}, "
            f"should be {_slot(labels, one.expected_token)}",
            request=one.request_id,
            sample=one.sample_index,
            prompts_with_what_was_read=", ".join(holders.get(one.found_token, ())) or "none",
        )
        for one in provenance.wrong
    ]


def _holders(observed: Iterable[AnyObservation]) -> Mapping[int, list[str]]:
    """Requests by the tokens of their prompts."""
    holders: dict[int, list[str]] = {}
    for one in observed:
        if isinstance(one, Submitted):
            for token in dict.fromkeys(one.prompt_token_ids):
                holders.setdefault(token, []).append(one.request_id)
    return holders


def _name(labels: Labels, token_id: int) -> str:
    slot = labels.slot(token_id)
    if slot is None:
        return f"token {token_id}, which stands in no prompt"
    return f"the slot of (req {slot.owner}, pos {slot.position})"


def _slot(labels: Labels, token_id: int) -> str:
    slot = labels.slot(token_id)
    return f"token {token_id}" if slot is None else str(slot)
