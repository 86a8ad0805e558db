"""Are an engine's numbers right? Greedy tokens and log-probabilities against exact ones.

A tiny checkpoint runs on the engine and, by transformers, in float64. Where tokens differ, the
comparison goes on behind the engine's token (teacher forcing), so that no later position is lost;
the gap must be one that rounding explains, and there must not be too many (oracles/hf.py,
numerics/greedy.py). Log-probabilities of prompts go by the three-way rule.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.asking import TIMEOUT_S, answer_to, outcome_of
from pagetwin.conformance.experiments.reference import (
    ROUNDOFFS,
    Reference,
    log_softmax,
    reference_model,
    reference_session,
    reference_setting,
)
from pagetwin.conformance.numerics import three_way
from pagetwin.conformance.numerics.greedy import (
    GreedyChoices,
    block_edge_p_value,
    choices_of,
    flips_p_value,
)
from pagetwin.conformance.numerics.three_way import ENGINE_TO_ORACLE
from pagetwin.conformance.observation import PromptScored
from pagetwin.conformance.properties import violation
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

NEAR_TIE = "num.greedy-near-tie"
FLIPS = "num.flip-rate"
PARITY = "num.logit-parity"
THREE_WAY = "num.threeway"
ALPHA = 1e-5
NUM_TOKENS = 48
LENGTHS = (1, 5, 16, 17, 33, 64, 100, 200)
EDGE_RATIO = 1.5
"""Errors at block edges that stand out are a finding if they are also so many times the others:
what is real but this small is the order of summation."""
CONTROL_FLIPS = 12.0
"""Expected flips of the control, an engine whose errors are larger than it says."""

Floats = NDArray[np.float64]


class Numerics:
    """One checkpoint in each dtype a round, and others while the budget lasts."""

    id = "numerics"
    judges = (NEAR_TIE, FLIPS, PARITY, THREE_WAY)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.CHECKPOINT})
    weight = 1.5

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        rounds = 0
        while budget.allows(rounds):
            for dtype in ROUNDOFFS:
                with reference_model(seed=seed + rounds, dtype=dtype) as reference:
                    yield from _judge_model(adapter, reference, budget, seed + rounds)
            rounds += 1


def _judge_model(
    adapter: Adapter, reference: Reference, budget: Budget, seed: int
) -> Iterator[Evidence]:
    random = np.random.default_rng([seed, 3])
    has_scores = adapter.capabilities().has(Flag.PROMPT_LOGPROBS)
    requests = [
        Request(
            request_id=f"num-{i}",
            prompt_token_ids=tuple(random.integers(reference.vocab_size, size=length).tolist()),
            sampling_params=SamplingParams(
                temperature=0.0,
                max_tokens=NUM_TOKENS,
                prompt_logprobs=0 if has_scores else None,
                ignore_eos=True,
                detokenize=False,
            ),
            arrival_s=float(i),
        )
        for i, length in enumerate(LENGTHS)
    ]
    # Small steps, so that prompts come in chunks beside others that decode.
    knobs = {"max_num_batched_tokens": 64, "max_num_seqs": 8}
    with reference_session(adapter, reference, knobs, seed=seed) as session:
        for request in requests:
            session.submit(request)
        session.run(TIMEOUT_S)
        outcome = outcome_of(session)
        scored = {
            one.request_id: one.logprobs
            for one in session.observations()
            if isinstance(one, PromptScored)
        }
    answers = [answer_to(outcome, request.request_id).token_ids for request in requests]
    yield from _judge_greedy(reference, requests, answers, budget.alpha(FLIPS) or ALPHA, random)
    if has_scores:
        size = reference_setting(adapter).block_size
        alpha = budget.alpha(PARITY) or ALPHA
        yield from _judge_scores(reference, requests, scored, size, alpha)


def _judge_greedy(
    reference: Reference,
    requests: Sequence[Request],
    answers: Sequence[tuple[int, ...]],
    alpha: float,
    random: np.random.Generator,
) -> Iterator[Evidence]:
    limit = 2 * reference.epsilon
    wrong: list[str] = []
    found: list[GreedyChoices] = []
    ties = 0
    for request, tokens in zip(requests, answers, strict=True):
        if len(tokens) != NUM_TOKENS:
            wrong.append(f"{request.request_id} gave {len(tokens)} of {NUM_TOKENS} tokens")
        if not tokens:
            continue
        logits = reference.logits(request.prompt_token_ids, tokens[:-1])
        choices = choices_of(logits, np.array(tokens))
        found.append(choices)
        for i in np.flatnonzero(choices.flipped):
            gap = float(logits[i].max() - logits[i, tokens[i]])
            ties += gap <= limit
            if gap > limit:
                wrong.append(
                    f"{request.request_id}, token {i}: {tokens[i]}, exact logits prefer "
                    f"{int(logits[i].argmax())} by {gap:.3g}; rounding explains {limit:.3g}"
                )
    name = reference.dtype
    compared = sum(len(one.margins) for one in found)
    broken = violation(NEAR_TIE, -1, wrong[0], cases=len(wrong), dtype=name) if wrong else None
    yield Evidence(
        property_id=NEAR_TIE,
        examples=compared,
        violation=broken,
        figures={f"near ties, {name}": float(ties), f"limit, {name}": limit},
    )
    if compared:
        every = GreedyChoices(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
        yield _judge_flips(every, reference, alpha, random)


def _judge_flips(
    choices: GreedyChoices, reference: Reference, alpha: float, random: np.random.Generator
) -> Evidence:
    """The control's errors are as large as makes CONTROL_FLIPS flips likely."""
    error = ENGINE_TO_ORACLE * reference.error_deviation
    p = flips_p_value(choices, error=error)
    name = reference.dtype
    found = None
    if p <= alpha:
        found = violation(
            FLIPS,
            -1,
            f"{int(choices.flipped.sum())} of {len(choices.margins)} greedy tokens are not the "
            f"likeliest; with errors of {error:.3g} so many have the probability {p:.3g}",
            dtype=name,
        )
    spread = np.sort(choices.margins)[: int(4 * CONTROL_FLIPS)].max()
    noise = random.normal(size=(2, len(choices.margins))) * spread
    control = choices._replace(flipped=choices.margins + noise[0] < noise[1])
    control_p = flips_p_value(control, error=error)
    missed = control_p > alpha and error * 100 < spread
    return Evidence(
        property_id=FLIPS,
        examples=len(choices.margins),
        violation=found,
        alpha_spent=alpha,
        untrusted=f"errors a hundred times too large were not caught in {name}" if missed else "",
        figures={f"p, {name}": p, f"control's p, {name}": control_p},
    )


def _judge_scores(
    reference: Reference,
    requests: Sequence[Request],
    scored: dict[str, tuple[float, ...]],
    block_size: int,
    alpha: float,
) -> Iterator[Evidence]:
    """Errors of prompt tokens' log-probabilities: engine's and transformers', each to exact."""
    name = reference.dtype
    engine, naive, positions = [], [], []
    missing = []
    for request in requests:
        prompt = request.prompt_token_ids
        if len(prompt) < 2:
            continue
        mine = scored.get(request.request_id, ())
        if len(mine) != len(prompt) - 1:
            missing.append(f"{request.request_id}: {len(mine)} scores for {len(prompt) - 1} tokens")
            continue
        index = np.arange(len(prompt) - 1), np.array(prompt[1:])
        exact = log_softmax(reference.logits(prompt[:1], prompt[1:-1]))[index]
        theirs = log_softmax(reference.naive_logits(prompt[:1], prompt[1:-1]))[index]
        engine.append(np.array(mine) - exact)
        naive.append(theirs - exact)
        positions.append(index[0])
    if not engine:
        message = missing[0] if missing else "no prompt was scored"
        yield Evidence(property_id=PARITY, violation=violation(PARITY, -1, message, dtype=name))
        return
    errors, others = np.concatenate(engine), np.concatenate(naive)
    rows = three_way.compare(errors, others, roundoff=ROUNDOFFS[reference.dtype])
    over = [row for row in rows if not row.is_within]
    found = None
    if over:
        found = violation(
            THREE_WAY,
            -1,
            f"quantile {over[0].quantile:g} of the errors is {over[0].engine:.3g}, that of "
            f"transformers in the same dtype {over[0].reference:.3g}",
            dtype=name,
        )
    figures = {f"used at {row.quantile:g}, {name}": row.used for row in rows}
    yield Evidence(property_id=THREE_WAY, examples=len(errors), violation=found, figures=figures)
    yield _judge_parity(
        reference, np.abs(errors), np.concatenate(positions), missing, block_size, alpha
    )


def _judge_parity(
    reference: Reference,
    errors: Floats,
    positions: NDArray[np.int64],
    missing: Sequence[str],
    block_size: int,
    alpha: float,
) -> Evidence:
    """Every error within what rounding explains, and none that prefers the edges of blocks."""
    name = reference.dtype
    # An error of each logit moves a log-softmax by twice as much at most.
    limit = 2 * reference.epsilon + 16 * ROUNDOFFS["float32"]
    message = missing[0] if missing else ""
    worst = int(errors.argmax())
    if not errors[worst] <= limit:
        message = f"the score at position {positions[worst] + 1} is off by {errors[worst]:.3g}"
        message += f"; rounding explains {limit:.3g}"
    p = block_edge_p_value(errors, positions, block_size)
    at_edge = positions % block_size < 2
    ratio = 1.0
    if at_edge.any() and not at_edge.all():
        ratio = float(errors[at_edge].mean() / max(errors[~at_edge].mean(), 1e-300))
    if p <= alpha and ratio >= EDGE_RATIO and not message:
        message = f"errors at block edges are {ratio:.2f} times those elsewhere (p = {p:.3g})"
    return Evidence(
        property_id=PARITY,
        examples=len(errors),
        violation=violation(PARITY, -1, message, dtype=name) if message else None,
        alpha_spent=alpha,
        figures={
            f"used of limit, {name}": float(errors[worst]) / limit,
            f"edge ratio, {name}": ratio,
        },
    )
