"""Actions: what may happen next, each as a value that can be stored, told and done again."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from pagetwin.conformance.exploration.scope import EOS, Scope
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

Ending = str
"""What a row's token is: "go" (it goes on), "stop" (EOS) or "fail" (none)."""


class Submit(NamedTuple):
    """The next request, with this prompt."""

    prompt: tuple[int, ...]
    num_samples: int = 1
    priority: int = 0


class Abort(NamedTuple):
    request_id: str


class Preempt(NamedTuple):
    """A forced preemption (docs/policy.md P3.5)."""

    request_id: str


class Reset(NamedTuple):
    pass


class Plan(NamedTuple):
    pass


class Close(NamedTuple):
    """The oldest step in flight takes effect, with these answers to the sequences due a token."""

    due: tuple[str, ...]
    endings: tuple[Ending, ...]


Action = Submit | Abort | Preempt | Reset | Plan | Close


def prompts(texts: list[tuple[int, ...]], length: int) -> Iterator[tuple[int, ...]]:
    """Every prompt of that length up to renaming of tokens, after these texts.

    Two prompts are the same but for names if they share prefixes of the same lengths with the
    same texts: nothing in the policy looks at a token but to compare it with another at the same
    position after the same tokens.
    """

    def extend(prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(prefix) == length:
            yield prefix
            return
        place = len(prefix)
        known = {text[place] for text in texts if len(text) > place and text[:place] == prefix}
        known.discard(EOS)
        fresh = next(token for token in range(len(known) + 1) if token not in known)
        for token in [*sorted(known), fresh]:
            yield from extend((*prefix, token))

    return extend(())


def submissions(scope: Scope, texts: list[tuple[int, ...]]) -> Iterator[Submit]:
    for length, samples, priority in product(
        scope.prompt_lengths, scope.num_samples, scope.priorities
    ):
        for prompt in prompts(texts, length):
            yield Submit(prompt, samples, priority)


def request_of(submit: Submit, number: int, scope: Scope) -> Request:
    """Request `number` (from 0, in order of submission) as the engine gets it."""
    return Request(
        request_id=f"r{number}",
        prompt_token_ids=submit.prompt,
        sampling_params=SamplingParams(n=submit.num_samples, max_tokens=scope.max_tokens),
        arrival_s=float(number),
        priority=submit.priority,
        eos_token_ids=(EOS,),
    )
