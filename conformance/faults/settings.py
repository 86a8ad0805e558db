"""What faults strike: a few requests that compete for memory, in several configurations."""

from collections.abc import Sequence
from random import Random

from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.conformance.scenario import Scenario, ScenarioRequest, SubmitEvent
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

VOCAB_SIZE = 16
_SHARED = (1, 2, 3, 4, 5, 6, 7)
_REQUESTS: Sequence[tuple[int, str, tuple[int, ...], int, int]] = (
    (0, "a", (*_SHARED, 8), 1, 9),
    (0, "b", (*_SHARED, 9), 2, 6),
    (1, "c", _SHARED[:4], 1, 12),
    (3, "d", (*_SHARED, 1, 1), 1, 7),
    (9, "e", (*_SHARED, 8), 1, 5),
)
"""(round of its submission, name, prompt, samples, output tokens)."""


def settings(can: Capabilities, *, seed: int = 0) -> dict[str, Scenario]:
    """By name: both preemption modes, synchronous or not; requests that share prefixes, one of
    two samples, in a pool that holds two of them. `seed` draws other tokens in their places.

    Scores are asked for where steps are synchronous: an engine that draws on its device, and goes
    on before it knows the token, may have to wait for them."""
    made = {}
    tokens = list(range(VOCAB_SIZE))
    if seed:
        Random(f"tokens {seed}").shuffle(tokens)
    for mode in ("recompute", "swap"):
        for asynchronous in (False, True):
            cache = CacheConfig(
                num_blocks=9, block_size=3, num_host_blocks=8 if mode == "swap" else 0
            )
            limits = SchedulerConfig(
                max_model_len=20,
                max_num_seqs=5,
                max_num_batched_tokens=8,
                preemption_mode="swap" if mode == "swap" else "recompute",
                async_scheduling=asynchronous,
            )
            made[f"{mode}{'-async' if asynchronous else ''}"] = Scenario(
                cache=cache,
                scheduler=limits,
                requests=tuple(
                    ScenarioRequest(request=one)
                    for one in _requests(can, tokens, with_scores=not asynchronous)
                ),
                events=tuple(
                    SubmitEvent(round=step, request_id=name) for step, name, *_ in _REQUESTS
                ),
                vocab_size=VOCAB_SIZE,
            )
    return made


def _requests(can: Capabilities, tokens: Sequence[int], *, with_scores: bool) -> list[Request]:
    """Of several samples each takes the likeliest token, as a greedy request does: then rounding
    can be told from a wrong answer."""
    num_logprobs = None
    if with_scores and can.has(Flag.CHOSEN_LOGPROB):
        num_logprobs = 2 if can.has(Flag.TOPK_LOGPROB) else 0
    return [
        Request(
            request_id=name,
            prompt_token_ids=tuple(tokens[token] for token in prompt),
            sampling_params=SamplingParams(
                n=samples,
                temperature=0.0 if samples == 1 else 1.0,
                top_k=0 if samples == 1 else 1,
                seed=1,
                max_tokens=longest,
                ignore_eos=True,
                detokenize=False,
                logprobs=num_logprobs,
            ),
            arrival_s=float(index),
        )
        for index, (_, name, prompt, samples, longest) in enumerate(_REQUESTS)
    ]
