"""Goodness of fit at one distribution: the first token of one prompt, drawn thousands of times."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pagetwin.conformance.adapters.protocol import Adapter, Session
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.asking import TIMEOUT_S
from pagetwin.conformance.experiments.reference import (
    log_softmax,
    reference_model,
    reference_session,
)
from pagetwin.conformance.observation import TokenSeen
from pagetwin.conformance.properties import violation
from pagetwin.conformance.statistics.goodness_of_fit import g_test
from pagetwin.conformance.statistics.sequential import SequentialResult, sequential_test
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

GOF = "samp.gof"
ALPHA = 1e-5
NUM_DRAWS = 2000
SAMPLES = 50
"""Of one request, where an engine gives several: they share the prompt's blocks, too."""
HOTTER = 1.25
"""The control's temperature; the test must find it with its own draws and bounds."""
LEAK = 0.1
"""Mass that the other control takes from the likeliest token and gives to the unlikely half."""


class OneDistribution:
    """The sequential wrapper of Gandy and Scott around the pooled G test."""

    id = "one-distribution"
    judges = (GOF,)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.TEMPERATURE, Flag.CHECKPOINT})
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        alpha = budget.alpha(GOF) or ALPHA
        random = np.random.default_rng([seed, 2])
        with reference_model(seed=seed) as reference:
            prompt = tuple(random.integers(reference.vocab_size, size=9).tolist())
            scores = log_softmax(reference.logits(prompt, ())[0])
            missed = [
                name
                for name, p in _controls(scores).items()
                if not _test(partial(random.multinomial, pvals=p), scores, alpha).failed
            ]
            with reference_session(adapter, reference, {}, seed=seed) as session:
                samples = SAMPLES if adapter.capabilities().has(Flag.SAMPLES) else 1
                source = _Source(session, prompt, samples, reference.vocab_size)
                result = _test(source.counts, scores, alpha)
        found = None
        if result.failed:
            found = violation(
                GOF,
                -1,
                f"the first token of one prompt does not follow the reference's law: p = "
                f"{result.p_values[-1]:.3g} at stage {len(result.p_values)}, the bound is "
                f"{result.bounds[-1]:.3g}",
                draws=result.num_draws,
                prompt=list(prompt),
            )
        yield Evidence(
            property_id=GOF,
            examples=result.num_draws,
            violation=found,
            alpha_spent=alpha,
            untrusted=f"not caught: {', '.join(missed)}" if missed else "",
            figures={"p": result.p_values[-1], "stages": float(len(result.p_values))},
        )


Counts = Callable[[int], NDArray[np.int64]]
"""From a number of draws to their counts [vocab]."""


def _test(counts: Counts, log_probabilities: NDArray[np.float64], alpha: float) -> SequentialResult:
    p = np.exp(log_probabilities)
    p /= p.sum()
    return sequential_test(lambda n: g_test(counts(n), p).p_value, alpha=alpha, num_draws=NUM_DRAWS)


def _controls(log_probabilities: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Laws that are wrong in a known way."""
    hot = np.exp(log_probabilities / HOTTER)
    leaking = np.exp(log_probabilities)
    unlikely = log_probabilities < np.median(log_probabilities)
    moved = min(LEAK, float(leaking.max()) / 2)
    leaking[leaking.argmax()] -= moved
    leaking[unlikely] += moved / unlikely.sum()
    return {
        f"a temperature {HOTTER:g} times too high": hot / hot.sum(),
        "a leak into unlikely tokens": leaking / leaking.sum(),
    }


class _Source:
    """Fresh draws of the first token, as counts [vocab]."""

    def __init__(
        self, session: Session, prompt: tuple[int, ...], samples: int, vocab_size: int
    ) -> None:
        self._session = session
        self._prompt = prompt
        self._samples = samples
        self._vocab_size = vocab_size
        self._num_requests = 0
        self._num_seen = 0

    def counts(self, num_draws: int) -> NDArray[np.int64]:
        """Counts of `num_draws` draws; the count is off only if a request fails."""
        params = SamplingParams(
            n=self._samples, temperature=1.0, max_tokens=1, ignore_eos=True, detokenize=False
        )
        for _ in range(-(-num_draws // self._samples)):
            request = Request(
                request_id=f"gof-{self._num_requests:06}",
                prompt_token_ids=self._prompt,
                sampling_params=params,
                arrival_s=float(self._num_requests),
            )
            self._num_requests += 1
            self._session.submit(request)
        self._session.run(TIMEOUT_S)
        observed = self._session.observations()[self._num_seen :]
        self._num_seen += len(observed)
        tokens = [one.token_id for one in observed if isinstance(one, TokenSeen)]
        return np.bincount(np.array(tokens, np.int64), minlength=self._vocab_size)
