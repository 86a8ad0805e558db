"""A counted replica in an environment: what it reports, when, and the loads that routers see."""

import random
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import simpy

from pagetwin.conformance.timed_cases import TimedCase, make_plain_case
from pagetwin.simulator.fast_forward.counted_process import CountedProcess
from pagetwin.simulator.occasions import At, Occasion, feed, occasions
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.timings import RequestTimings
from pagetwin.simulator.token_gaps import TokenGaps


class Watched:
    """One run, and everything that somebody outside can see of it."""

    def __init__(
        self, case: TimedCase, ticks: list[int], *, is_counted: bool, is_late: bool = False
    ) -> None:
        self.first_tokens: list[tuple[str, int, int]] = []
        self.ended: list[tuple[int, RequestTimings]] = []
        self.loads: list[ReplicaLoad] = []
        self.env = simpy.Environment()
        reports: dict[str, Any] = {"on_first_token": self._first, "on_finish": self._end}
        tokens = case.tokens()
        self.process: ReplicaProcess
        if is_counted:
            self.process = CountedProcess(
                self.env,
                case.cache,
                case.scheduler,
                case.cost_model,
                tokens,
                may_report_late=is_late,
                **reports,
            )
        else:
            replica = Replica(case.cache, case.scheduler)
            self.process = ReplicaProcess(self.env, replica, case.cost_model, tokens, **reports)
        self.process.times.gaps = TokenGaps()
        self.env.process(self._feed(case))
        self.env.process(self._look(ticks))
        self.env.run()
        self.result = self.process.result()

    def _feed(self, case: TimedCase) -> Generator[simpy.Event, None, None]:
        due = occasions(case.requests, case.aborts)
        yield from feed(self.env, self.process, self._caught_up(due))
        self.process.report_at_once()

    def _caught_up(self, due: Iterator[Occasion]) -> Iterator[Occasion]:
        """As a gateway does before each arrival; here it is one early, which is as well."""
        for occasion in due:
            self.process.catch_up()
            yield occasion

    def _first(self, request_id: str, now: int) -> None:
        self.first_tokens.append((request_id, now, int(self.env.now)))

    def _end(self, timings: RequestTimings) -> None:
        self.ended.append((int(self.env.now), timings))

    def _look(self, ticks: list[int]) -> Generator[simpy.Event, None, None]:
        for tick in ticks:
            yield At(self.env, tick)
            self.process.catch_up()
            self.loads.append(self.process.load())

    @property
    def num_gaps(self) -> int:
        assert self.process.times.gaps is not None
        return sum(self.process.times.gaps.counts.values())


@pytest.mark.filterwarnings("ignore")
def test_reports_loads_and_results_are_those_of_stepping() -> None:
    seen: Counter[str] = Counter()
    for seed in range(120):
        case = make_plain_case(seed)
        rng = random.Random(seed)
        end = Watched(case, [], is_counted=False).result.end_ticks + 2
        ticks = sorted(rng.randrange(1, end) for _ in range(30)) if seed % 2 else []
        stepped = Watched(case, ticks, is_counted=False)
        counted = Watched(case, ticks, is_counted=True)
        assert counted.result == stepped.result, f"seed {seed}"
        assert counted.first_tokens == stepped.first_tokens, f"seed {seed}"
        assert counted.ended == stepped.ended, f"seed {seed}"
        assert counted.loads == stepped.loads, f"seed {seed}"
        assert counted.num_gaps == stepped.num_gaps, f"seed {seed}"
        assert isinstance(counted.process, CountedProcess)
        seen["to the end" if counted.process.is_counted else "handed over"] += 1
        seen["loads"] += len(set(map(str, stepped.loads)))
        seen["gaps"] += counted.num_gaps
    assert seen["to the end"] > 40
    assert seen["handed over"] > 15
    assert seen["loads"] > 300
    assert seen["gaps"] > 1000


@pytest.mark.filterwarnings("ignore")
def test_late_reports_are_those_that_would_have_come_at_once() -> None:
    seen: Counter[str] = Counter()
    for seed in range(120):
        case = make_plain_case(seed)
        rng = random.Random(seed)
        at_once = Watched(case, [], is_counted=True)
        end = at_once.result.end_ticks + 2
        ticks = sorted(rng.randrange(1, end) for _ in range(5))
        at_once = Watched(case, ticks, is_counted=True)
        late = Watched(case, ticks, is_counted=True, is_late=True)
        assert late.result == at_once.result, f"seed {seed}"
        assert [told[:2] for told in late.first_tokens] == [t[:2] for t in at_once.first_tokens]
        assert [timings for _, timings in late.ended] == [one for _, one in at_once.ended]
        assert late.loads == at_once.loads, f"seed {seed}"
        assert late.num_gaps == at_once.num_gaps, f"seed {seed}"
        assert isinstance(late.process, CountedProcess)
        seen["late"] += late.ended != at_once.ended
        seen["handed over"] += not late.process.is_counted
        seen["in time"] += late.ended == at_once.ended
    assert min(seen[name] for name in ("late", "handed over", "in time")) > 10, seen


def test_a_replica_that_fails_leaves_what_it_was_serving() -> None:
    case = make_plain_case(6)
    env = simpy.Environment()
    process = CountedProcess(env, case.cache, case.scheduler, case.cost_model, case.tokens())
    env.process(feed(env, process, occasions(case.requests[:3], {})))
    env.run(until=round(case.requests[2].arrival_s * 10**12) + 1)
    left = [request.request_id for request in process.stop()]
    assert left
    assert set(left) <= {request.request_id for request in case.requests[:3]}
    num_steps = process.result().num_steps
    env.run()
    assert process.result().num_steps == num_steps
