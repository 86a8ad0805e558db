"""Decides how a replica that is counted lives in a SimPy environment, and when it stops being so.

It sleeps until the next step that gives a first token, ends a sequence or lets somebody in. Where
nobody acts on what it reports, it sleeps on, and reports when it is asked for anything. What
cannot be counted (an abort, a shared prefix, a shortage of blocks) hands the replica over to
`FastForwardProcess`, in mid-step if need be, and there it stays.
"""

from collections.abc import Generator
from contextlib import suppress

import simpy

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request, sequence_id
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.countable import ending_of, refusal_of
from pagetwin.simulator.fast_forward.counted import CountedReplica
from pagetwin.simulator.fast_forward.handover import hand_over, hand_over_times
from pagetwin.simulator.fast_forward.outlook import load_at, next_change
from pagetwin.simulator.fast_forward.process import FastForwardProcess
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.timekeeper import Finished, FirstToken
from pagetwin.simulator.timings import SimulationResult
from pagetwin.simulator.token_source import ScriptedTokens

Events = Generator[simpy.Event, None, None]


class CountedProcess(FastForwardProcess):
    """A `SimulatedReplica` without a history, for knobs that `can_count` accepts."""

    def __init__(
        self,
        env: simpy.Environment,
        cache: CacheConfig,
        scheduler: SchedulerConfig,
        cost_model: CostModel,
        tokens: ScriptedTokens,
        *,
        on_first_token: FirstToken | None = None,
        on_finish: Finished | None = None,
        may_report_late: bool = False,
    ) -> None:
        """With `may_report_late` reports wait, with their ticks, for `catch_up`, until
        `report_at_once` is called."""
        super().__init__(
            env,
            Replica(cache, scheduler),
            cost_model,
            tokens,
            on_first_token=on_first_token,
            on_finish=on_finish,
        )
        self._counted: CountedReplica | None = CountedReplica(
            cache, scheduler, cost_model, self.times.note_end, self.times.note_first_token
        )
        self._may_report_late = may_report_late
        self._sleeps = False
        """Whether it waits where an interrupt is expected."""
        self._is_decoding = False
        """Whether it sleeps through steps that only decode."""

    @property
    def is_counted(self) -> bool:
        return self._counted is not None

    def hand_over(self) -> None:
        """Makes `scheduler` and `times` those of a plain replica, and goes on with them."""
        if self._counted is None:
            return
        self._counted.advance(self._now)
        self._go_on_plainly()

    def submit(self, request: Request) -> bool:
        counted = self._counted
        if counted is None:
            return super().submit(request)
        counted.advance(self._now)
        refusal = refusal_of(request, counted)
        if refusal is not None:
            self.times.refuse(request, refusal)
            return False
        end = ending_of(request, counted, self._script)
        if end is None:
            self._go_on_plainly()
            return super().submit(request)
        counted.submit(request, self._now, end)
        if self._is_decoding:
            self._rouse()
        if not self._reports_late:
            self._wake_up()
        return True

    def abort(self, request_id: str) -> bool:
        if self._counted is not None:
            if request_id not in self._counted.live:
                return False
            self.hand_over()
        return super().abort(request_id)

    @property
    def _reports_late(self) -> bool:
        """Whether it need not wake of itself: a shortage of blocks would have to be seen coming."""
        counted = self._counted
        return self._may_report_late and counted is not None and counted.has_room_for_all

    def catch_up(self) -> None:
        if self._counted is not None and self._may_report_late:
            self._counted.advance(self._now)
            self.times.tell()

    def report_at_once(self) -> None:
        self._may_report_late = False
        self._wake_up()

    def load(self) -> ReplicaLoad:
        if self._counted is None:
            return super().load()
        self._counted.advance(self._now)
        return load_at(self._counted, self._now)

    def stop(self) -> tuple[Request, ...]:
        if self._counted is not None and self._counted.live:
            self.hand_over()
        return super().stop()

    def result(self) -> SimulationResult:
        if self._counted is None:
            return super().result()
        hand_over_times(self._counted, self.times)
        return self.times.result(self._counted.counters())

    def _run(self) -> Events:
        if self._counted is not None:
            self._counted.gaps = self.times.gaps
        while self._counted is not None and not self._is_stopped:
            self._counted.advance(self._now + 1)  # the step that ends now is over
            self.times.tell()
            if self._counted is None:
                break  # somebody who was told did what cannot be counted
            change = None if self._reports_late else next_change(self._counted)
            if change is not None and change <= self._now:
                self._go_on_plainly()
                break
            self._sleeps = True
            with suppress(simpy.Interrupt):  # something has changed: look again
                if change is None:
                    self._wake = self._env.event()
                    yield self._wake
                else:
                    is_mixed = self._counted.is_about_to_prefill()
                    self._is_decoding = not is_mixed and not self._counted.late
                    yield self._env.timeout(change - self._now)
            self._sleeps = self._is_decoding = False
        yield from super()._run()

    def _go_on_plainly(self) -> None:
        """Hands over to a plain replica, in the step under way if there is one."""
        counted, self._counted = self._counted, None
        assert counted is not None
        self._replica = hand_over(counted, self._script)
        self.scheduler = self._replica
        hand_over_times(counted, self.times)
        if self.times.gaps is not None:
            for seq in counted.batch.rows:
                self.times.gaps.token(sequence_id(seq.request.request_id, 0), counted.now)
        if counted.now < self._now and self._begin_step(counted.now):
            self._step_end = counted.now + self._duration
        for seq in counted.late:
            self._replica.add_request(seq.request)
            self.times.submit(seq.request, seq.submitted)
        self._rouse()

    def _rouse(self) -> None:
        """Ends its sleep, whatever it waits for; once."""
        self._is_decoding = False
        if self._sleeps:
            self._sleeps = False
            self._process.interrupt()
