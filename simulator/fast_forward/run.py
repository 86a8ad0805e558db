"""Decides how far a replica that is alone is only counted, and lets the plain one go on."""

from collections.abc import Iterator
from itertools import chain

import simpy

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.countable import ending_of, refusal_of
from pagetwin.simulator.fast_forward.counted import CountedReplica
from pagetwin.simulator.fast_forward.ending import Ending
from pagetwin.simulator.fast_forward.handover import hand_over, hand_over_times
from pagetwin.simulator.fast_forward.process import FastForwardProcess
from pagetwin.simulator.occasions import Occasion, bring, feed
from pagetwin.simulator.timekeeper import Finished, Timekeeper
from pagetwin.simulator.timings import SimulationResult
from pagetwin.simulator.token_source import ScriptedTokens


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
            end = None if occasion.is_abort else ending_of(occasion.subject, counted, self._tokens)
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

    def _take(self, occasion: Occasion, end: Ending | None) -> bool:
        """False, and nothing changed, if it is beyond counting. `end` is what `ending_of` said
        before the time of the occasion had come."""
        if occasion.is_abort:
            return occasion.subject not in self.counted.live
        request: Request = occasion.subject
        if end is None:
            refusal = refusal_of(request, self.counted)
            if refusal is not None:
                self.times.refuse(request, refusal)
                return True
            end = ending_of(request, self.counted, self._tokens)
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
