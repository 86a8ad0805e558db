"""Decides when a replica jumps and when it steps, in a SimPy environment.

Between two decision points (an arrival, an abort, an end, a shortage of blocks, the end of a
chunk, a fork) a batch only decodes. The replica sleeps through such a stretch, and does its steps
in one go when it wakes, or when somebody asks; the step in which something may be decided is
planned and closed as `ReplicaProcess` does it. The result is the same to the tick and to the
block, and so is the history.
"""

from collections.abc import Generator

import msgspec
import simpy

from pagetwin.engine.request import Request
from pagetwin.engine.trace import HistoryWriter
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.advance import (
    append_tokens,
    apply_event,
    block_events,
    count_computed,
)
from pagetwin.simulator.fast_forward.expansion import Expansion
from pagetwin.simulator.fast_forward.stretch import Stretch, find_stretch
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.timekeeper import Finished, FirstToken
from pagetwin.simulator.token_source import ScriptedTokens

Events = Generator[simpy.Event, None, None]


class FastForwardProcess(ReplicaProcess):
    """A `SimulatedReplica` that jumps; see `ReplicaProcess` for the arguments.

    Where several replicas' steps end at the same tick, their order in the environment may differ
    from that of stepping ones.
    """

    def __init__(
        self,
        env: simpy.Environment,
        replica: Replica,
        cost_model: CostModel,
        tokens: ScriptedTokens,
        history: HistoryWriter | None = None,
        *,
        on_first_token: FirstToken | None = None,
        on_finish: Finished | None = None,
    ) -> None:
        super().__init__(
            env,
            replica,
            cost_model,
            tokens,
            history,
            on_first_token=on_first_token,
            on_finish=on_finish,
        )
        self.num_jumps = 0
        self.num_steps_jumped = 0
        self._replica = replica
        self._script = tokens
        self._stretch: Stretch | None = None
        self._stretch_start = 0
        self._step_end: int | None = None

    def submit(self, request: Request) -> bool:
        self._catch_up()
        return super().submit(request)

    def abort(self, request_id: str) -> bool:
        self._catch_up()
        return super().abort(request_id)

    def stop(self) -> tuple[Request, ...]:
        self._catch_up()
        return super().stop()

    def load(self) -> ReplicaLoad:
        """In a stretch only the free blocks change; asking for them does not end it."""
        if self._stretch is None or self._replica.state.cache.sliding_window > 0:
            self._catch_up()
            return super().load()
        num_steps = self._stretch.steps_before(self._now - self._stretch_start)
        num_taken = self._stretch.num_takes(num_steps + 1)  # the step under way is planned
        load = super().load()
        return msgspec.structs.replace(load, num_free_blocks=load.num_free_blocks - num_taken)

    def _run(self) -> Events:
        while not self._is_stopped:
            if self._step_end is not None:
                yield self._env.timeout(self._step_end - self._now)
                if self._is_stopped:
                    return
                now, self._step_end = self._step_end, None
                self._end_step(now)
            elif self._begin_stretch():
                assert self._stretch is not None
                try:
                    yield self._env.timeout(self._stretch.duration(self._stretch.num_steps))
                except simpy.Interrupt:
                    continue  # `_catch_up` has begun the step that is now under way
                self._jump(self._stretch.num_steps)
            elif self._begin_step(self._now):
                self._step_end = self._now + self._duration
            else:
                self._wake = self._env.event()
                yield self._wake

    def _num_repeated_tokens(self) -> int:
        return self._replica.num_repeated_tokens

    def _begin_stretch(self) -> bool:
        self._stretch = find_stretch(
            self._replica.state, self._script, self._cost_model, self._clock, self._now
        )
        self._stretch_start = self._now
        return self._stretch is not None

    def _catch_up(self) -> None:
        """Ends a stretch early: does the steps that are over, and begins the one under way."""
        if self._stretch is None:
            return
        num_steps = self._stretch.steps_before(self._now - self._stretch_start)
        now = self._stretch_start + self._stretch.duration(num_steps)
        self._jump(num_steps)
        self._begin_step(now)
        self._step_end = now + self._duration
        self._process.interrupt()

    def _jump(self, num_steps: int) -> None:
        """Does the first steps of the stretch, and forgets it."""
        stretch, start = self._stretch, self._stretch_start
        assert stretch is not None
        self._stretch = None
        if num_steps == 0:
            return
        state = self._replica.state
        with_values = self._history is not None or state.cache.enable_prefix_caching
        append_tokens(stretch, num_steps, self._script, with_values=with_values)
        if self._history is not None:
            next_plan = self._replica.num_plans
            expansion = Expansion(state, stretch, self._history, start=start, next_plan=next_plan)
            expansion.write(num_steps)
        else:
            for event in block_events(state, stretch, num_steps):
                apply_event(state, stretch.rows[event.row], event)
        self._replica.count_plans(num_steps)
        plan = count_computed(state, stretch, num_steps)
        duration = stretch.duration(num_steps)
        if plan is not None:
            self._in_flight[0] = plan
            parts = stretch.parts(num_steps)
            self._clock.follow(start + duration, parts)
        self.times.advance(
            [seq.seq_id for seq in stretch.rows],
            num_steps,
            now=start + duration,
            duration=duration,
            first=stretch.step_ticks(0),
            growth=stretch.growth,
        )
        self.num_jumps += 1
        self.num_steps_jumped += num_steps
