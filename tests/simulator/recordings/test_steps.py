"""Recorded steps: whose time was whose, and what sequences share, told from the records alone."""

import logging
import math

import msgspec
import pytest
import simpy

from pagetwin.conformance.timed_cases import make_case
from pagetwin.engine.step import StepPlan, StepTimings
from pagetwin.engine.trace import HistoryWriter, PlanRecord
from pagetwin.simulator.cost_model import StepComposition
from pagetwin.simulator.occasions import feed, occasions
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.recordings.holders import BlockHolders
from pagetwin.simulator.recordings.steps import HostTimes, Step, StepTable
from pagetwin.simulator.replica import Replica


def step(wait_s: float = 0.0) -> Step:
    return Step(
        parts=StepComposition(num_decode_sequences=1, num_context_tokens=5, num_samples=1),
        seconds=1.0,
        device_seconds=0.5,
        graph_size=1,
        wait_seconds=wait_s,
        is_first=False,
        is_ahead=False,
    )


def phases(prepare_s: float, execute_s: float) -> StepTimings:
    return StepTimings(prepare_s=prepare_s, execute_s=execute_s)


def test_the_time_between_two_results_is_divided_among_two_steps() -> None:
    host, steps = HostTimes(), [step(wait_s=2.0) for _ in range(4)]
    host.begin(0.0)
    host.plan(0, 0.5)
    host.plan(1, 1.0)
    host.result(0, steps[0], phases(0.125, 0.25), 10.0)
    host.plan(2, 10.5)
    host.result(1, steps[1], phases(0.125, 0.5), 14.0)
    host.plan(3, 14.25)
    host.result(2, steps[2], phases(0.5, 0.25), 18.0)
    host.result(3, steps[3], phases(0.5, 0.5), 20.0)
    told = [(one.before_seconds, one.launch_seconds, one.after_seconds) for one in steps]
    # Two were planned at first: step 1 at 1.0, when step 0 was launched since 0.875.
    assert told[0] == (0.625, 0.25, 10.0 - 1.625 - 2.0)
    assert told[1][:2] == (1.125 - 0.875, 0.5)
    # Step 2 was planned at 10.5, ready at 11.0, launched at 11.25; then step 1 was awaited for 2.
    assert told[2][:2] == (1.0, 0.25)
    assert told[1][2] == 14.0 - 11.25 - 2.0
    assert told[3][:2] == (0.75, 0.5)
    assert told[2][2] == 18.0 - 15.25 - 2.0
    assert math.isnan(told[3][2]), "nobody was planned meanwhile"


def test_a_step_alone_has_all_the_time_and_what_was_idle_counts_for_nothing() -> None:
    host, first, second, third = HostTimes(), step(), step(0.5), step()
    host.plan(0, 1.0)
    host.result(0, first, phases(0.1, 0.1), 2.0)
    assert math.isnan(first.before_seconds), "nobody knows when it could begin"
    host.plan(1, 2.25)
    host.result(1, second, phases(0.25, 0.5), 4.0)
    assert (second.before_seconds, second.launch_seconds) == (0.5, 0.5)
    assert second.after_seconds == 4.0 - 3.0 - 0.5
    host.idle()
    host.begin(99.0)
    host.plan(2, 100.0)
    host.result(2, third, phases(0.25, 0.25), 101.0)
    assert (third.before_seconds, third.after_seconds) == (1.25, 0.5)


def test_tables_are_joined_and_cut_row_by_row() -> None:
    table = StepTable.joined([StepTable.of([step(1.0)]), StepTable.of([step(2.0), step(3.0)])])
    assert table.wait_seconds.tolist() == [1, 2, 3]
    assert table.where(table.wait_seconds > 1.5).wait_seconds.tolist() == [2, 3]
    assert next(iter(table.compositions())) == step().parts
    assert len(StepTable.joined([])) == 0


def test_plans_alone_tell_what_sequences_share(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    shared = compared = 0
    for seed in range(120):
        case = make_case(seed)
        # Blocks that fall out of a window are given back, which no plan says; what ends in flight
        # holds them for a step more; forks do before a plan has them.
        if case.cache.sliding_window or case.scheduler.async_scheduling:
            continue
        case.requests = [
            one
            for one in case.requests
            if one.beam_search is None and one.sampling_params.num_samples == 1
        ]
        replica, history = _Watched(case.cache, case.scheduler), HistoryWriter(keep=True)
        env = simpy.Environment()
        process = ReplicaProcess(env, replica, case.cost_model, case.tokens(), history)
        env.process(feed(env, process, occasions(case.requests, {})))
        env.run()
        holders = BlockHolders()
        plans = [record.plan for record in history.records if isinstance(record, PlanRecord)]
        for plan, (repeats, has_pins) in zip(plans, replica.seen, strict=True):
            found = holders.note(plan)
            if not has_pins:
                assert found == repeats, f"seed {seed}, step {plan.step}"
                compared += 1
                shared += repeats > 0
    assert compared > 1000
    assert shared > 20


class _Watched(Replica):
    """Remembers what its pool says after each plan, and whether copies pin blocks meanwhile."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.seen: list[tuple[int, bool]] = []

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is not None:
            has_pins = any(flight.pins for flight in self.state.flights)
            self.seen.append((self.state.pool.num_repeats, has_pins))
        return plan


def test_a_step_survives_its_encoding() -> None:
    one = step(0.25)
    encoded = msgspec.msgpack.encode(one)
    assert msgspec.msgpack.decode(encoded, type=Step).wait_seconds == 0.25
