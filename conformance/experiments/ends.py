"""Where an answer ends: the same prompts at length, and again with limits, stop tokens and clients
that hang up. What is cut must be the beginning of what is not, up to the exact token.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pagetwin.conformance.adapters.protocol import Adapter, Session
from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.conformance.experiments.asking import (
    Answer,
    opened,
    session_config,
    setting_for,
)
from pagetwin.conformance.experiments.courses import Setting, Tokens
from pagetwin.conformance.experiments.questions import Questions, evidence_of
from pagetwin.conformance.observation import Cancelled, TokenSeen
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
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
        self._can = can
        self._questions = Questions(
            session, setting, name="ends", seed=seed, num_prompts=NUM_PROMPTS
        )

    def judge(self) -> Iterator[Evidence]:
        whole = self._questions.ask(
            [SamplingParams(**_GREEDY, max_tokens=NUM_TOKENS)] * NUM_PROMPTS
        )
        yield self._judge_lengths(whole)
        if self._can.has(Flag.STOP_TOKENS):
            yield self._judge_stops(whole)
        if self._can.has(Flag.CANCEL):
            yield self._judge_cancels(whole)

    def _judge_lengths(self, whole: Sequence[Answer]) -> Evidence:
        limits = [1 + i for i in range(NUM_PROMPTS)]
        cut = self._questions.ask([SamplingParams(**_GREEDY, max_tokens=limit) for limit in limits])
        pairs = [*zip(whole, whole, [NUM_TOKENS] * NUM_PROMPTS, strict=True)]
        pairs += zip(cut, whole, limits, strict=True)
        wrong = [
            f"{list(answer.token_ids)} and reason {answer.reason!r} for max_tokens={limit}; at "
            f"length the text is {list(text.token_ids)}"
            for answer, text, limit in pairs
            if (answer.token_ids, answer.reason) != (text.token_ids[:limit], "length")
            or len(answer.token_ids) != limit
        ]
        return evidence_of(LIMITS, len(pairs), wrong)

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
        answers = self._questions.ask(params)
        wrong = [
            f"{list(answer.token_ids)} with reason {answer.reason!r}; the text is "
            f"{list(one.text)} and the stop token {one.token}"
            for one, answer in zip(due, answers, strict=True)
            if answer.token_ids not in one.allowed or answer.reason != "stop"
        ]
        ends = sum(answer.reason == "stop" for answer in answers)
        return evidence_of(STOPS, len(due), wrong, {"ends by stop": ends})

    def _judge_cancels(self, whole: Sequence[Answer]) -> Evidence:
        """Every other client hangs up; the rest hear what they would have heard anyway."""
        params = [SamplingParams(**_GREEDY, max_tokens=NUM_TOKENS)] * NUM_PROMPTS
        hang_ups = [(0, LISTENS)[i // 2 % 2] if i % 2 else None for i in range(NUM_PROMPTS)]
        answers = self._questions.ask(params, hang_ups=hang_ups)
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
        seen = self._questions.observed
        hung_up = {one.request_id for one in seen if isinstance(one, Cancelled)}
        heard = {one.request_id for one in seen if isinstance(one, TokenSeen)}
        return evidence_of(
            CANCEL, NUM_PROMPTS, wrong, {"cancelled in decode": len(hung_up & heard)}
        )


_GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}


class _Stop(NamedTuple):
    text: Tokens
    token: int

    @property
    def allowed(self) -> tuple[Tokens, Tokens]:
        """Up to the stop token, which an engine may show or keep to itself."""
        place = self.text.index(self.token)
        return self.text[: place + 1], self.text[:place]
