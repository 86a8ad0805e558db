"""The shrinker: a smaller scenario that fails in the same way, in domain terms.

Delta debugging (Zeller and Hildebrandt, 2002) over what a scenario is made of: requests, events,
rounds, prompts, outputs, and the configuration, towards the plainest there is. It needs nothing
but a predicate, so it works on any adapter, and what one run costs decides how far it goes.
"""

from collections.abc import Callable
from typing import NamedTuple

from pagetwin.conformance.scenario import Scenario, encode_scenario
from pagetwin.conformance.shrink_passes import PASSES, Pass

Fails = Callable[[Scenario], bool]

Cost = tuple[int, ...]


class Shrunk(NamedTuple):
    """The smallest failing scenario that was found."""

    scenario: Scenario
    runs: int
    """Times that the predicate was asked."""
    accepted: int
    """Smaller scenarios that still failed."""
    is_minimal: bool
    """Whether no single step makes it smaller; False where `max_runs` ended the search."""


class _RunsUsedUp(Exception):
    pass


def shrink(
    scenario: Scenario, fails: Fails, *, max_runs: int = 2000, confirmations: int = 1
) -> Shrunk:
    """Shrinks a scenario for which `fails` is true; the same result each time.

    `fails` should tell one failure from another (the same property, say), or the search slips
    into another bug. An engine that does not always fail needs `confirmations` above 1: each
    smaller scenario must fail so often in a row. If `scenario` itself does not fail, it is
    returned as it is.
    """
    search = _Search(fails, max_runs, confirmations)
    if not search.fails(scenario):
        return Shrunk(scenario, search.runs, 0, False)
    best, accepted, is_minimal = scenario, 0, False
    try:
        while not is_minimal:
            before = cost(best)
            for reduce in PASSES:
                # A pass is asked again after each success, about the smaller scenario.
                while (smaller := search.first_failing(best, reduce)) is not None:
                    best, accepted = smaller, accepted + 1
            is_minimal = cost(best) == before
    except _RunsUsedUp:
        is_minimal = False
    return Shrunk(best, search.runs, accepted, is_minimal)


def cost(scenario: Scenario) -> Cost:
    """What is smaller: fewer requests first, then fewer events, tokens and rounds, then a plainer
    and shorter text. Every accepted step lowers it, so a search ends."""
    requests = list(scenario.requests_by_id().values())
    scripted = sum(len(output.token_ids) for output in scenario.outputs)
    return (
        len(requests),
        len(scenario.events) + len(scenario.failing_requests),
        sum(request.num_samples for request in requests),
        sum(request.num_prompt_tokens for request in requests)
        + sum(request.sampling_params.max_tokens or 0 for request in requests)
        + scripted,
        sum(1 + 2 * event.round + event.in_flight for event in scenario.events),
        _plainness(scenario),
        len(encode_scenario(scenario)),
        sum(sum(request.prompt_token_ids) for request in requests)
        + sum(sum(output.token_ids) for output in scenario.outputs),
    )


def _plainness(scenario: Scenario) -> int:
    """How much of the configuration there is: features that are on, then the sizes."""
    cache, limits = scenario.cache, scenario.scheduler
    features = (
        cache.enable_prefix_caching,
        cache.enable_partial_hits,
        cache.num_host_blocks > 0,
        cache.watermark_blocks > 0,
        cache.sliding_window > 0,
        limits.async_scheduling,
        limits.wait_for_prefix,
        limits.policy != "fcfs",
        limits.preemption_mode != "recompute",
        limits.num_lookahead_slots > 0,
        limits.long_prefill_token_threshold > 0,
        not limits.enable_chunked_prefill,
    )
    sizes = (
        cache.num_blocks,
        cache.block_size,
        cache.num_host_blocks,
        limits.max_model_len,
        limits.max_num_seqs,
        limits.max_num_batched_tokens,
        scenario.vocab_size,
    )
    return 1000 * sum(features) + sum(min(size, 9999) for size in sizes)


class _Search:
    """Asks the predicate, each scenario once, and counts."""

    def __init__(self, fails: Fails, max_runs: int, confirmations: int) -> None:
        self._predicate = fails
        self._max_runs = max_runs
        self._confirmations = confirmations
        self._known: dict[bytes, bool] = {}
        self.runs = 0

    def fails(self, scenario: Scenario) -> bool:
        key = encode_scenario(scenario)
        if key not in self._known:
            self._known[key] = all(self._run(scenario) for _ in range(self._confirmations))
        return self._known[key]

    def first_failing(self, scenario: Scenario, reduce: Pass) -> Scenario | None:
        limit = cost(scenario)
        for candidate in reduce(scenario):
            if cost(candidate) < limit and self.fails(candidate):
                return candidate
        return None

    def _run(self, scenario: Scenario) -> bool:
        if self.runs >= self._max_runs:
            raise _RunsUsedUp
        self.runs += 1
        return self._predicate(scenario)
