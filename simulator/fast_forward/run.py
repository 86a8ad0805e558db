"""Decides how far a replica that is alone is only counted, and lets the plain one go on."""

from collections.abc import Iterator
from itertools import chain

import simpy

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.counted import CountedReplica
from pagetwin.simulator.fast_forward.counted_pool import opening
from pagetwin.simulator.fast_forward.ending import Ending, ending, longest_output, pool_output
from pagetwin.simulator.fast_forward.handover import hand_over, hand_over_times
from pagetwin.simulator.fast_forward.process import FastForwardProcess
from pagetwin.simulator.occasions import Occasion, bring, feed
from pagetwin.simulator.refusal import refuse_impossible, refuse_in_use
from pagetwin.simulator.timings import Finished, SimulationResult, Timekeeper
from pagetwin.simulator.token_source import ScriptedTokens


def can_count(cache: CacheConfig, scheduler: SchedulerConfig) -> bool:
    """Whether the knobs are such that `CountedReplica` knows what they do."""
    return (
        scheduler.policy == "fcfs"
        and not scheduler.async_scheduling
        and scheduler.long_prefill_token_threshold == 0
        and cache.sliding_window == 0
    )


class CountedRun:
    """A run that is counted as long as that is exact, and then handed over to a plain replica."""

    def __init__(
        self,
        cache: CacheConfig,
        scheduler: SchedulerConfig,
        cost_model: CostModel,
        tokens: ScriptedTokens,
        on_finish: Finished | None = None,
    ) -> None:
        self.times = Timekeeper(on_finish=on_finish)
        self.counted = CountedReplica(cache, scheduler, cost_model, self.times.keep)
        self.was_handed_over = False
        self._cost_model = cost_model
        self._tokens = tokens

    def run(self, due: Iterator[Occasion]) -> SimulationResult:
        counted = self.counted
        occasion = next(due, None)
        while occasion is not None:
            following = next(due, None)
            end = None if occasion.is_abort else self._ending(occasion.subject)
            # A request that can be counted leaves the step under way alone.
            through = None if end is None or following is None else following.ticks
            if not counted.advance(occasion.ticks, through) or not self._take(occasion, end):
                rest = [occasion] if following is None else [occasion, following]
                return self._go_on(chain(rest, due))
            occasion = following
        if not counted.advance(None):
            return self._go_on(iter(()))
        hand_over_times(counted, self.times)
        return self.times.result(counted.counters())

    def _ending(self, request: Request) -> Ending | None:
        """How it ends, if it is accepted and can be counted: it is one sequence, nobody shares a
        block with it, and the pool does not cut it short. Once true, that does not change."""
        cache, scheduler = self.counted.cache, self.counted.scheduler
        if request.beam_search is not None or request.sampling_params.num_samples > 1:
            return None
        if self._refusal(request) is not None:
            return None
        if cache.enable_prefix_caching and opening(request) in self.counted.pool.openings:
            return None
        longest = longest_output(request, cache, scheduler)
        if longest >= pool_output(request, cache, scheduler):
            return None
        return ending(request, longest, self._tokens)

    def _refusal(self, request: Request) -> str | None:
        counted = self.counted
        try:
            if request.request_id in counted.live:
                refuse_in_use(request)
            refuse_impossible(request, counted.cache, counted.scheduler)
        except RequestError as error:
            return str(error)
        return None

    def _take(self, occasion: Occasion, end: Ending | None) -> bool:
        """False, and nothing changed, if it is beyond counting. `end` is what `_ending` said
        before the time of the occasion had come."""
        if occasion.is_abort:
            return occasion.subject not in self.counted.live
        request: Request = occasion.subject
        if end is None:
            refusal = self._refusal(request)
            if refusal is not None:
                self.times.refuse(request, refusal)
                return True
            end = self._ending(request)
            if end is None:
                return False
        self.counted.submit(request, occasion.ticks, end)
        return True

    def _go_on(self, due: Iterator[Occasion]) -> SimulationResult:
        """The plain replica does the rest, from the start of the step under way."""
        self.was_handed_over = True
        counted = self.counted
        env = simpy.Environment(initial_time=counted.now)
        replica = hand_over(counted, self._tokens)
        process = FastForwardProcess(env, replica, self._cost_model, self._tokens)
        hand_over_times(counted, self.times)
        process.times = self.times
        late = (Occasion(seq.submitted, False, seq.request) for seq in counted.late)
        due = chain(late, due)
        for occasion in due:
            if occasion.ticks > counted.now:
                env.process(feed(env, process, chain([occasion], due)))
                break
            bring(process, occasion)  # before the step that begins now is planned
        env.run()
        return self.times.result(replica.counters())
