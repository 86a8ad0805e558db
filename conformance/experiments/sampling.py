"""Are tokens drawn from the distribution that the parameters say?

The engine draws thousands of tokens from a tiny checkpoint; transformers in float64 says, position
by position, from which law each should have come. Judged in order of power: by the known noise
where there is one, by the support, and by sequential tests that need neither (conformance/sampling,
conformance/statistics). Every statistical judge must first catch a faulty sampler that draws from
the same laws.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.asking import TIMEOUT_S, answer_to, outcome_of
from pagetwin.conformance.experiments.reference import (
    Reference,
    reference_model,
    reference_session,
)
from pagetwin.conformance.oracles.noise import known_noise
from pagetwin.conformance.properties import violation
from pagetwin.conformance.sampling import judges
from pagetwin.conformance.sampling.controls import Controls, add_controls, empty_controls
from pagetwin.conformance.sampling.draws import Draw, DrawFacts, facts_of, law_of
from pagetwin.conformance.sampling.judges import Judgement
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

SUPPORT = "samp.support"
COUPLED = "samp.coupled"
PIT = "samp.pit"
INDEPENDENCE = "samp.independence"
ALPHA = 1e-5
"""Where the run gives the property no share of its own."""
NUM_REQUESTS = 96
NUM_TOKENS = 64
ENOUGH_DRAWS = 60_000
"""A control that is not caught with so many shows that the judges do not work."""
CUTS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 50},
)


class Sampling:
    """Draws in rounds until each judge catches its control, or the budget ends."""

    id = "sampling"
    judges = (SUPPORT, COUPLED, PIT, INDEPENDENCE)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.TEMPERATURE, Flag.CHECKPOINT})
    weight = 3.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        draws: list[DrawFacts] = []
        controls = empty_controls()
        rounds = 0
        with reference_model(seed=seed) as reference:
            while budget.allows(rounds):
                _draw_round(adapter, reference, seed + rounds, draws, controls)
                rounds += 1
                verdicts = _verdicts(adapter, reference, draws, controls, budget)
                if all(one.is_settled for one in verdicts):
                    break
        # The last piece says how a property stands, so what is not settled comes last.
        pieces = [verdict.evidence() for verdict in verdicts]
        yield from sorted(pieces, key=lambda piece: bool(piece.undecided))


class Verdict(NamedTuple):
    """A judge's word on the engine and on its control."""

    property_id: str
    engine: Judgement
    control: Judgement | None
    """None where the judgement is exact and needs none."""
    num_drawn: int
    goals: dict[str, int]

    @property
    def is_settled(self) -> bool:
        is_caught = self.control is None or self.control.failure is not None
        return is_caught or self.engine.failure is not None or self.num_drawn >= ENOUGH_DRAWS

    def evidence(self) -> Evidence:
        found = None
        if self.engine.failure is not None:
            found = violation(self.property_id, -1, self.engine.failure, draws=self.num_drawn)
        missed = self.control is not None and self.control.failure is None
        what = f"a faulty sampler was not caught with {self.num_drawn} draws"
        has_enough = self.num_drawn >= ENOUGH_DRAWS
        return Evidence(
            property_id=self.property_id,
            examples=self.engine.num_draws,
            goals=self.goals,
            violation=found,
            alpha_spent=self.engine.alpha,
            undecided=what if missed and not has_enough else "",
            untrusted=what if missed and has_enough else "",
            figures={"statistic": self.engine.statistic}
            | ({} if self.control is None else {"control's statistic": self.control.statistic}),
        )


def _verdicts(
    adapter: Adapter,
    reference: Reference,
    draws: Sequence[DrawFacts],
    controls: Controls,
    budget: Budget,
) -> list[Verdict]:
    def verdict(
        property_id: str,
        judge: Callable[[Sequence[DrawFacts]], Judgement],
        control: Sequence[DrawFacts] | None,
        **goals: int,
    ) -> Verdict:
        caught = None if control is None else judge(control)
        named = {name.replace("_", " "): count for name, count in goals.items()}
        return Verdict(property_id, judge(draws), caught, len(draws), named)

    def alpha(property_id: str) -> float:
        return budget.alpha(property_id) or ALPHA

    cut = sum(draw.edge_mass > 0 for draw in draws)
    found = [
        verdict(SUPPORT, judges.judge_support, controls.leaking, draws_from_a_cut_support=cut),
        verdict(SUPPORT, lambda d: judges.judge_edge(d, alpha=alpha(SUPPORT)), None),
        verdict(PIT, lambda d: judges.judge_pit(d, alpha=alpha(PIT)), controls.hotter),
        verdict(
            INDEPENDENCE,
            lambda d: judges.judge_lags(d, alpha=alpha(INDEPENDENCE) / 2),
            controls.stuck,
        ),
        verdict(
            INDEPENDENCE,
            lambda d: judges.judge_across(d, alpha=alpha(INDEPENDENCE) / 2),
            controls.shared,
        ),
    ]
    if adapter.capabilities().has(Flag.NOISE_KNOWN):
        lowest = min(cut["temperature"] for cut in CUTS)
        tolerance = 2 * reference.epsilon / lowest + _NOISE_ERROR
        found.append(verdict(COUPLED, lambda d: judges.judge_coupled(d, tolerance=tolerance), None))
    return found


_NOISE_ERROR = 1e-6
"""Two libraries' logarithms in float32 differ by less."""


def _draw_round(
    adapter: Adapter,
    reference: Reference,
    seed: int,
    draws: list[DrawFacts],
    controls: Controls,
) -> None:
    """One session's draws, and as many of each control, are added."""
    random = np.random.default_rng([seed, 1])
    requests = _requests(reference, seed, random, has_seeds=adapter.capabilities().has(Flag.SEED))
    with reference_session(adapter, reference, {}, seed=seed) as session:
        for request in requests:
            session.submit(request)
        session.run(TIMEOUT_S)
        outcome = outcome_of(session)
    is_known = adapter.capabilities().has(Flag.NOISE_KNOWN)
    partner = np.empty(0)
    for i, request in enumerate(requests):
        tokens = answer_to(outcome, request.request_id).token_ids
        laws = _laws(reference, request, tokens)
        for t, (law, token) in enumerate(zip(laws, tokens, strict=True)):
            noise = None
            if is_known:
                noise = known_noise(
                    request,
                    sample_index=0,
                    output_index=t,
                    engine_seed=seed,
                    vocab_size=reference.vocab_size,
                )
            draws.append(facts_of(law, token, v=random.random(), noise=noise))
        own = add_controls(controls, laws, partner, random)
        partner = np.empty(0) if i % 2 else own


def _requests(
    reference: Reference, seed: int, random: np.random.Generator, *, has_seeds: bool
) -> list[Request]:
    """Pairs of one prompt and the same parameters; every second pair has seeds of its own."""
    requests: list[Request] = []
    for pair in range(NUM_REQUESTS // 2):
        prompt = tuple(random.integers(reference.vocab_size, size=8).tolist())
        for side in range(2):
            own_seed = 1 + 2 * pair + side + 1000 * seed if has_seeds and pair % 2 else None
            params = SamplingParams(
                **CUTS[pair % len(CUTS)],
                seed=own_seed,
                max_tokens=NUM_TOKENS,
                ignore_eos=True,
                detokenize=False,
            )
            requests.append(
                Request(
                    request_id=f"draw-{seed}-{2 * pair + side:03}",
                    prompt_token_ids=prompt,
                    sampling_params=params,
                    arrival_s=float(len(requests)),
                )
            )
    return requests


def _laws(reference: Reference, request: Request, tokens: Sequence[int]) -> list[Draw]:
    if not tokens:
        return []
    logits = reference.logits(request.prompt_token_ids, tokens[:-1])
    return [
        law_of(row, request, tokens[:t], epsilon=reference.epsilon) for t, row in enumerate(logits)
    ]
