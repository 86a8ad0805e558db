"""Questions: the same prompts asked again and again in one session, each time under other terms."""

from collections.abc import Sequence
from random import Random

import msgspec

from pagetwin.conformance.adapters.protocol import Adapter, Session, SessionConfig
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.asking import (
    TIMEOUT_S,
    Answer,
    answer_to,
    outcome_of,
    session_config,
)
from pagetwin.conformance.experiments.courses import Setting, Tokens
from pagetwin.conformance.observation import AnyObservation
from pagetwin.conformance.properties import violation
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams


class Questions:
    """Prompts of all lengths up to three blocks, and what was made of them so far."""

    def __init__(
        self, session: Session, setting: Setting, *, name: str, seed: int, num_prompts: int
    ) -> None:
        random = Random(f"{name} {seed}")
        self.random = random
        """For whatever else the round draws."""
        self.prompts: list[Tokens] = [
            tuple(
                random.randrange(setting.vocab_size)
                for _ in range(random.randint(1, 3 * setting.block_size))
            )
            for _ in range(num_prompts)
        ]
        self._session = session
        self._name = name
        self._num_asked = 0

    @property
    def observed(self) -> Sequence[AnyObservation]:
        return self._session.observations()

    def ask(
        self,
        params: Sequence[SamplingParams],
        *,
        hang_ups: Sequence[int | None] = (),
        eos_token_ids: Sequence[Tokens] = (),
    ) -> list[Answer]:
        """The prompts' answers under these parameters, one for each, all asked at once.

        `hang_ups`: after how many tokens each client gives up; `eos_token_ids`: what ends each.
        """
        patience = hang_ups or [None] * len(params)
        ends = eos_token_ids or [()] * len(params)
        asked = []
        for prompt, one, tokens, eos in zip(self.prompts, params, patience, ends, strict=False):
            request = Request(
                request_id=f"{self._name}-{self._num_asked:03}",
                prompt_token_ids=prompt,
                sampling_params=one,
                arrival_s=float(self._num_asked),
                eos_token_ids=eos,
            )
            self._num_asked += 1
            asked.append(request.request_id)
            self._session.submit(request, cancel_after=tokens)
        self._session.run(TIMEOUT_S)
        outcome = outcome_of(self._session)
        return [answer_to(outcome, request_id) for request_id in asked]


def questions_config(adapter: Adapter, setting: Setting) -> SessionConfig:
    """A roomy session, with text if the engine has any."""
    with_text = adapter.capabilities().has(Flag.TEXT)
    return msgspec.structs.replace(session_config(setting, {}), with_text=with_text)


def evidence_of(
    property_id: str, examples: int, wrong: Sequence[str], goals: dict[str, int] | None = None
) -> Evidence:
    """One piece; what is wrong, in words, is a violation."""
    found = violation(property_id, -1, wrong[0], cases=len(wrong)) if wrong else None
    return Evidence(property_id=property_id, examples=examples, violation=found, goals=goals or {})
