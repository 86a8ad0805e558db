"""Decides every step as docs/policy.md says: the twin's own scheduler and KV memory.

It is written from the policy alone and shares with the engine only the data that crosses
between them, so that a mistake in either shows as a difference. Lists, sets and dicts; clear
before fast. The clauses stand where they are applied: `planning`, `admission`, `under_way`
and `plan_builder` have P2, `preemption` has P3, `closing` has P5 and the rest of P4, `memory` has
the blocks.
"""

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters, StepPlan, StepResult, StepUpdate
from pagetwin.simulator.closing import close_step
from pagetwin.simulator.planning import plan_step
from pagetwin.simulator.refusal import refuse_impossible, refuse_in_use
from pagetwin.simulator.state import State


class Replica:
    """One engine's scheduler, without the engine; implements `step.SteppingScheduler`."""

    def __init__(self, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
        self._state = State(cache, scheduler)
        self._num_plans = 0

    @property
    def state(self) -> State:
        """The queues, pools and books, for those who advance or read them in bulk."""
        return self._state

    @property
    def num_plans(self) -> int:
        """Plans made so far, which is the number of the next one."""
        return self._num_plans

    def count_plans(self, count: int) -> None:
        """Counts plans whose effect on `state` somebody else has brought about."""
        self._num_plans += count

    def add_request(self, request: Request) -> None:
        """Queues a request; raises RequestError if P2.5 refuses it."""
        if self._state.has_id_in_use(request.request_id):
            refuse_in_use(request)
        refuse_impossible(request, self._state.cache, self._state.scheduler)
        self._state.submit(request)

    def abort_request(self, request_id: str) -> bool:
        """Ends a request in any state (P5.2); False if it is unknown or over."""
        group = self._state.groups.get(request_id)
        if group is None:
            return False
        for seq in group.live:
            self._state.end(seq)
        self._state.totals.aborts += 1
        return True

    def preempt_request(self, request_id: str) -> bool:
        """Has the next plan preempt what runs of a request (P3.5); False if nothing of it runs."""
        group = self._state.groups.get(request_id)
        if group is None or all(seq.status != "running" for seq in group.live):
            return False
        self._state.due_preemptions.add(request_id)
        return True

    def reset_prefix_cache(self) -> bool:
        """Clears every cached key; False while sequences hold blocks (P4.8)."""
        return self._state.pool.clear_cache()

    def has_unfinished_requests(self) -> bool:
        """Whether a request lives, or a step is in flight."""
        return bool(self._state.groups or self._state.flights)

    def schedule(self) -> StepPlan | None:
        """Plans a step; None if there is nothing to plan, or a result must be awaited first."""
        flight = plan_step(self._state, self._num_plans)
        if flight is None:
            return None
        self._num_plans += 1
        self._state.flights.append(flight)
        return flight.plan

    def update(self, plan: StepPlan, result: StepResult) -> StepUpdate:
        """Closes the oldest step in flight; ValueError if `plan` or `result` is of another."""
        flights = self._state.flights
        if not flights or not flights[0].plan.step == plan.step == result.step:
            expected = f"step {flights[0].plan.step}" if flights else "no step"
            raise ValueError(
                f"update got the plan of step {plan.step} and the result of step {result.step}; "
                f"{expected} is the oldest in flight, and steps close in order"
            )
        return close_step(self._state, flights.pop(0), result)

    def counters(self) -> Counters:
        return self._state.counters()

    @property
    def num_repeated_tokens(self) -> int:
        """Tokens in blocks that several hold, each block counted once less than its holders."""
        return self._state.num_repeated_tokens

    def block_table(self, seq_id: str) -> tuple[int, ...]:
        """The device blocks of a live sequence, null entries (0) included; empty if it has none.

        Raises KeyError for a sequence that is not live.
        """
        request_id = seq_id.rpartition("/")[0]
        for seq in self._state.groups[request_id].live:
            if seq.seq_id == seq_id:
                return tuple(seq.table)
        raise KeyError(seq_id)

    def check_invariants(self) -> None:
        """Recounts every book the slow way; AssertionError if one is wrong."""
        self._state.check_invariants()
