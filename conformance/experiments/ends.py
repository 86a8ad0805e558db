"""Where an answer ends: the same prompts at length, and again with limits, stop tokens and clients
that hang up. What is cut must be the beginning of what is not, up to the exact token.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

from pagetwin.conformance.adapters.protocol import Adapter, Session
from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.conformance.experiments.asking import (
    TIMEOUT_S,
    Answer,
    answer_to,
    opened,
    outcome_of,
    session_config,
    setting_for,
)
from pagetwin.conformance.experiments.courses import Setting, Tokens
from pagetwin.conformance.observation import Cancelled, TokenSeen
from pagetwin.conformance.properties import violation
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

LIMITS = "life.limit-cuts"
STOPS = "life.stop-cuts"
CANCEL = "life.cancel-harms-nobody"
NUM_PROMPTS = 6
NUM_TOKENS = 12
LISTENS = 3
"""Tokens after which a client hangs up."""


class Ends:
    """Asks prompts at length, and then again with limits, stop tokens and clients that hang up."""

    id = "ends"
    judges = (LIMITS, STOPS, CANCEL)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.IGNORE_EOS})
    weight = 0.5

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        setting, can = setting_for(adapter), adapter.capabilities()
        number = 0
        while budget.allows(number):
            with opened(adapter, session_config(setting, {}), as_it_is=True) as session:
                yield from _Round(session, setting, can, seed + number).judge()
            number += 1


class _Round:
    """One session: what its prompts say at length is what their cut forms are held against."""

    def __init__(self, session: Session, setting: Setting, can: Capabilities, seed: int) -> None:
        random = Random(f"ends {seed}")
        self._session = session
        self._can = can
        self._prompts: list[Tokens] = [
            tuple(
                random.randrange(setting.vocab_size)
                for _ in range(random.randint(1, 3 * setting.block_size))
            )
            for _ in range(NUM_PROMPTS)
        ]
        self._requests: list[Request] = []

    def judge(self) -> Iterator[Evidence]:
        whole = self._ask([SamplingParams(**_GREEDY, max_tokens=NUM_TOKENS)] * NUM_PROMPTS)
        yield self._judge_lengths(whole)
        if self._can.has(Flag.STOP_TOKENS):
            yield self._judge_stops(whole)
        if self._can.has(Flag.CANCEL):
            yield self._judge_cancels(whole)

    def _judge_lengths(self, whole: Sequence[Answer]) -> Evidence:
        limits = [1 + i for i in range(NUM_PROMPTS)]
        cut = self._ask([SamplingParams(**_GREEDY, max_tokens=limit) for limit in limits])
        pairs = [*zip(whole, whole, [NUM_TOKENS] * NUM_PROMPTS, strict=True)]
        pairs += zip(cut, whole, limits, strict=True)
        wrong = [
            f"{list(answer.token_ids)} and reason {answer.reason!r} for max_tokens={limit}; at "
            f"length the text is {list(text.token_ids)}"
            for answer, text, limit in pairs
            if (answer.token_ids, answer.reason) != (text.token_ids[:limit], "length")
            or len(answer.token_ids) != limit
        ]
        return _evidence(LIMITS, len(pairs), wrong)

    def _judge_stops(self, whole: Sequence[Answer]) -> Evidence:
        """The stop token is one that the text holds; it ends at its first place, which may come
        before the one that was looked at."""
        due = [
            _Stop(answer.token_ids, answer.token_ids[i % len(answer.token_ids)])
            for i, answer in enumerate(whole)
            if answer.token_ids
        ]
        params = [
            SamplingParams(**_GREEDY, max_tokens=NUM_TOKENS, stop_token_ids=(one.token,))
            for one in due
        ]
        answers = self._ask(params)
        wrong = [
            f"{list(answer.token_ids)} with reason {answer.reason!r}; the text is "
            f"{list(one.text)} and the stop token {one.token}"
            for one, answer in zip(due, answers, strict=True)
            if answer.token_ids not in one.allowed or answer.reason != "stop"
        ]
        ends = sum(answer.reason == "stop" for answer in answers)
        return _evidence(STOPS, len(due), wrong, {"ends by stop": ends})

    def _judge_cancels(self, whole: Sequence[Answer]) -> Evidence:
        """Every other client hangs up; the rest hear what they would have heard anyway."""
        params = [SamplingParams(**_GREEDY, max_tokens=NUM_TOKENS)] * NUM_PROMPTS
        hang_ups = [(0, LISTENS)[i // 2 % 2] if i % 2 else None for i in range(NUM_PROMPTS)]
        answers = self._ask(params, hang_ups)
        wrong = []
        for answer, alone, patience in zip(answers, whole, hang_ups, strict=True):
            if patience is None and answer.token_ids != alone.token_ids:
                wrong.append(
                    f"{list(answer.token_ids)} beside clients that hang up, without them "
                    f"{list(alone.token_ids)}"
                )
            elif patience is not None and (
                answer.token_ids != alone.token_ids[: len(answer.token_ids)]
            ):
                wrong.append(
                    f"{list(answer.token_ids)} before the client hung up, not a beginning "
                    f"of {list(alone.token_ids)}"
                )
        seen = self._session.observations()
        hung_up = {one.request_id for one in seen if isinstance(one, Cancelled)}
        heard = {one.request_id for one in seen if isinstance(one, TokenSeen)}
        return _evidence(CANCEL, NUM_PROMPTS, wrong, {"cancelled in decode": len(hung_up & heard)})

    def _ask(
        self, params: Sequence[SamplingParams], hang_ups: Sequence[int | None] = ()
    ) -> list[Answer]:
        """The prompts' answers under these parameters, all asked at once."""
        patience = hang_ups or [None] * len(params)
        asked = []
        for prompt, one, tokens in zip(self._prompts, params, patience, strict=False):
            request = Request(
                request_id=f"end-{len(self._requests):03}",
                prompt_token_ids=prompt,
                sampling_params=one,
                arrival_s=float(len(self._requests)),
            )
            self._requests.append(request)
            asked.append(request.request_id)
            self._session.submit(request, cancel_after=tokens)
        self._session.run(TIMEOUT_S)
        outcome = outcome_of(self._session)
        return [answer_to(outcome, request_id) for request_id in asked]


_GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}


class _Stop(NamedTuple):
    text: Tokens
    token: int

    @property
    def allowed(self) -> tuple[Tokens, Tokens]:
        """Up to the stop token, which an engine may show or keep to itself."""
        place = self.text.index(self.token)
        return self.text[: place + 1], self.text[:place]


def _evidence(
    property_id: str, examples: int, wrong: Sequence[str], goals: dict[str, int] | None = None
) -> Evidence:
    found = violation(property_id, -1, wrong[0], cases=len(wrong)) if wrong else None
    return Evidence(property_id=property_id, examples=examples, violation=found, goals=goals or {})
