"""What sampling parameters mean, token by token: seeds, the greedy limit, penalties, logprobs."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from pagetwin.conformance.adapters.protocol import Adapter, Session
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.asking import TIMEOUT_S, Answer, answer_to, outcome_of
from pagetwin.conformance.experiments.questions import evidence_of
from pagetwin.conformance.experiments.reference import (
    Reference,
    log_softmax,
    reference_model,
    reference_session,
    reference_setting,
)
from pagetwin.conformance.oracles.sampling import adjusted_logits
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

SEEDS = "samp.seed-semantics"
GREEDY_LIMIT = "samp.greedy-is-T0-limit"
PENALTIES = "samp.penalties"
LOGPROBS = "samp.logprobs"

NUM_PROMPTS = 8
NUM_TOKENS = 16
NUM_TOP = 5
COLD = 0.01
"""The lowest temperature that is not greedy."""
WIDEST_NOISE = 27.0
"""Gumbel noise made of 32-bit words spans less: a token that far behind, in units of the
temperature, is never drawn."""
ROUNDING = 1e-5
"""Beside the reference's own error: what float32 does to a log-probability of a few units."""

_PROCESSORS: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.8},
    {"frequency_penalty": 0.9, "presence_penalty": 0.4},
    {"presence_penalty": -1.5},
    {"logit_bias": {3: 4.0, 7: -100.0, 11: 3.5}},
    {"allowed_token_ids": tuple(range(5, 60))},
    {"repetition_penalty": 0.7, "frequency_penalty": 1.1, "logit_bias": {5: 2.0}},
)


class SamplingSemantics:
    """One round on one tiny checkpoint; more rounds on others while the budget lasts."""

    id = "sampling-semantics"
    judges = (SEEDS, GREEDY_LIMIT, PENALTIES, LOGPROBS)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.CHECKPOINT})
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        can = adapter.capabilities()
        rounds = 0
        while budget.allows(rounds):
            with reference_model(seed=seed + rounds) as reference:
                asker = _Asker(adapter, reference, seed + rounds)
                if can.has(Flag.TEMPERATURE, Flag.SEED):
                    yield _judge_seeds(asker)
                if can.has(Flag.TEMPERATURE):
                    yield _judge_greedy_limit(asker)
                if can.has(Flag.PENALTIES):
                    yield _judge_penalties(asker)
                if can.has(Flag.TOPK_LOGPROB):
                    yield _judge_logprobs(asker)
            rounds += 1


class _Asker:
    """Asks a fixed list of prompts under any parameters, each time in a session of its own."""

    def __init__(self, adapter: Adapter, reference: Reference, seed: int) -> None:
        random = Random(f"semantics {seed}")
        self._adapter = adapter
        self.reference = reference
        size = reference_setting(adapter).block_size
        self.prompts = [
            tuple(
                random.randrange(reference.vocab_size) for _ in range(random.randint(2, 2 * size))
            )
            for _ in range(NUM_PROMPTS)
        ]

    def requests(self, params: Sequence[dict[str, Any]], name: str) -> list[Request]:
        """One request for each prompt, named anew; parameters in turn."""
        return [
            Request(
                request_id=f"{name}-{i}",
                prompt_token_ids=prompt,
                sampling_params=SamplingParams(
                    **{"max_tokens": NUM_TOKENS, "ignore_eos": True, "detokenize": False}
                    | params[i % len(params)]
                ),
                arrival_s=float(i),
            )
            for i, prompt in enumerate(self.prompts)
        ]

    def ask(self, *batches: Sequence[Request]) -> list[list[Answer]]:
        """The answers of each batch; a batch is over before the next is submitted."""
        with reference_session(self._adapter, self.reference, {}) as session:
            return [_ask(session, batch) for batch in batches]


def _ask(session: Session, requests: Sequence[Request]) -> list[Answer]:
    for request in requests:
        session.submit(request)
    session.run(TIMEOUT_S)
    outcome = outcome_of(session)
    return [answer_to(outcome, request.request_id) for request in requests]


def _judge_seeds(asker: _Asker) -> Evidence:
    """Alone, together, in another order under other names: equal seeds, equal tokens; and the
    other way round, seeds matter."""
    params = [{"temperature": 1.0, "seed": 50 + i} for i in range(NUM_PROMPTS)]
    others = [{"temperature": 1.0, "seed": 950 + i} for i in range(NUM_PROMPTS)]
    alone = asker.requests(params, "alone")
    together = asker.requests(params, "together")
    turned = asker.requests(params, "turned")[::-1]
    apart = asker.requests(others, "apart")
    crowd = asker.requests([{"temperature": 0.7}], "crowd")
    answers = asker.ask(*([one] for one in alone), together, [*crowd, *turned], apart)
    own = [one for [one] in answers[:NUM_PROMPTS]]
    in_batch, in_crowd, other = answers[NUM_PROMPTS:]
    wrong = [
        f"prompt {i} with seed {50 + i} gives {list(one.token_ids)} alone and "
        f"{list(here.token_ids)} {where}"
        for where, these in (
            ("in a batch", in_batch),
            ("in another order and under another name", in_crowd[NUM_PROMPTS:][::-1]),
        )
        for i, (one, here) in enumerate(zip(own, these, strict=True))
        if one.token_ids != here.token_ids or not one.token_ids
    ]
    if all(a.token_ids == b.token_ids for a, b in zip(own, other, strict=True)):
        wrong.append("other seeds give the same tokens for every prompt")
    return evidence_of(SEEDS, 3 * NUM_PROMPTS, wrong, {"batches": 2})


def _judge_greedy_limit(asker: _Asker) -> Evidence:
    greedy, only, cold = asker.ask(
        asker.requests([{"temperature": 0.0}], "greedy"),
        asker.requests([{"temperature": 1.0, "top_k": 1}], "only"),
        asker.requests([{"temperature": COLD}], "cold"),
    )
    wrong = []
    for i, (one, top_1, frozen) in enumerate(zip(greedy, only, cold, strict=True)):
        logits = asker.reference.logits(asker.prompts[i], one.token_ids)
        difference = _first_difference(one, top_1)
        if difference is not None and _gap(logits, difference, top_1) > asker.reference.epsilon * 2:
            wrong.append(f"prompt {i}, token {difference}: top_k=1 takes another than greedy")
        difference = _first_difference(one, frozen)
        if difference is not None and _gap(logits, difference, frozen) > COLD * WIDEST_NOISE:
            wrong.append(f"prompt {i}, token {difference}: T={COLD} takes one that is far behind")
    return evidence_of(GREEDY_LIMIT, 2 * NUM_PROMPTS, wrong)


def _first_difference(one: Answer, other: Answer) -> int | None:
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None and len(one.token_ids) != len(other.token_ids):
        return min(len(one.token_ids), len(other.token_ids))
    return place


def _gap(logits: np.ndarray[Any, np.dtype[np.float64]], index: int, answer: Answer) -> float:
    """By how much the answer's token is behind the best; endless if it has none there."""
    if index >= len(answer.token_ids):
        return float("inf")
    return float(logits[index].max() - logits[index, answer.token_ids[index]])


def _judge_penalties(asker: _Asker) -> Evidence:
    """Each token has the largest adjusted logit after exactly the tokens before it."""
    params = [{"temperature": 0.0} | fields for fields in _PROCESSORS]
    requests = asker.requests(params, "penalised")
    [answers] = asker.ask(requests)
    wrong, changed, compared = [], 0, 0
    for request, answer in zip(requests, answers, strict=True):
        if not answer.token_ids:
            wrong.append(f"{request.request_id} ended with {answer.reason!r} and no token")
            continue
        logits = asker.reference.logits(request.prompt_token_ids, answer.token_ids[:-1])
        # A penalty above 1 widens an error as it widens a logit.
        widest = max(1.0, request.sampling_params.repetition_penalty)
        for i, (row, token) in enumerate(zip(logits, answer.token_ids, strict=True)):
            scores = adjusted_logits(row, request, answer.token_ids[:i])
            changed += int(scores.argmax()) != int(row.argmax())
            compared += 1
            gap = float(scores.max() - scores[token])
            if not gap <= 2 * widest * asker.reference.epsilon:
                wrong.append(
                    f"{request.request_id}, token {i}: {token}, but {int(scores.argmax())} is "
                    f"better by {gap:.3g} under {_shown(request.sampling_params)}"
                )
    return evidence_of(PENALTIES, compared, wrong, {"tokens that a processor changed": changed})


def _judge_logprobs(asker: _Asker) -> Evidence:
    """Of the raw logits, whatever the parameters: the chosen token's and the top ones."""
    params = [
        {"temperature": 0.0, "logprobs": NUM_TOP},
        {"temperature": 0.6, "top_k": 3, "logprobs": NUM_TOP},
        {"temperature": 0.0, "frequency_penalty": 1.0, "logprobs": NUM_TOP},
    ]
    requests = asker.requests(params, "scored")
    [answers] = asker.ask(requests)
    limit = 2 * asker.reference.epsilon + ROUNDING
    wrong, compared = [], 0
    for request, answer in zip(requests, answers, strict=True):
        logits = asker.reference.logits(request.prompt_token_ids, answer.token_ids[:-1] or ())
        exact = log_softmax(logits)
        for i, token in enumerate(answer.token_ids):
            compared += 1
            fault = _wrong_scores(answer, i, token, exact[i], limit)
            if fault is not None:
                wrong.append(f"{request.request_id}, token {i}: {fault}")
    return evidence_of(LOGPROBS, compared, wrong)


def _wrong_scores(
    answer: Answer,
    index: int,
    token: int,
    exact: np.ndarray[Any, np.dtype[np.float64]],
    limit: float,
) -> str | None:
    own, tops = answer.logprobs[index], answer.tops[index]
    if own is None or not abs(own - exact[token]) <= limit:
        return f"token {token} has log-probability {exact[token]:.7g}, reported is {own}"
    for one in tops:
        if not abs(one.logprob - exact[one.token_id]) <= limit:
            return (
                f"token {one.token_id} has log-probability {exact[one.token_id]:.7g}, reported "
                f"is {one.logprob}"
            )
    if any(a.logprob < b.logprob for a, b in pairwise(tops)):
        return "the top tokens are not in order"
    reported = {one.token_id for one in tops} - {token}
    lowest = np.sort(exact)[-NUM_TOP]
    missing = [t for t in np.flatnonzero(exact > lowest + limit) if t not in reported | {token}]
    if len(tops) < NUM_TOP or missing:
        return f"token {missing or '?'} is among the {NUM_TOP} likeliest and not reported"
    return None


def _shown(params: SamplingParams) -> str:
    plain = SamplingParams()
    names = sorted({name for fields in _PROCESSORS for name in fields})
    return ", ".join(
        f"{name}={getattr(params, name)}"
        for name in names
        if getattr(params, name) != getattr(plain, name)
    )
