"""Host and device side by side: who waits for whom, and for how long."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.simulator.cost_model import DecodeLine, HostTicks, StepComposition
from pagetwin.simulator.step_clock import StepClock, alone_line, alone_ticks, decode_parts

FLAT = DecodeLine(5, 0)


@dataclass
class Costs:
    """Prefill tokens are the device's ticks; all steps are the same for the host."""

    host: HostTicks
    line: DecodeLine = FLAT

    def ticks(self, parts: StepComposition) -> int:
        if parts.num_prefill_tokens:
            return parts.num_prefill_tokens
        return self.line.base + self.line.slope * parts.num_context_tokens

    def host_ticks(self, parts: StepComposition) -> HostTicks:
        return self.host

    def decode_line(self, num_sequences: int, context: int, num_repeated: int = 0) -> DecodeLine:
        return self.line


def work(ticks: int) -> StepComposition:
    return StepComposition(num_prefill_sequences=1, num_prefill_tokens=ticks)


def ends(host: HostTicks, device: list[int]) -> list[int]:
    """When steps end, each of which is launched while the one before is computed."""
    clock, now, found = StepClock(Costs(host)), 0, []
    clock.launch(work(device[0]), now)
    for following in [*device[1:], None]:
        if following is not None:
            clock.launch(work(following), now)
        now = clock.next_end(now)
        clock.close()
        found.append(now)
    return found


def test_a_host_that_costs_nothing_leaves_the_devices_time() -> None:
    assert ends(HostTicks(), [10, 20, 5]) == [10, 30, 35]


def test_a_fast_host_hides_behind_the_device() -> None:
    # The first step waits for its launch, the last for its closing; else the device decides.
    assert ends(HostTicks(2, 1, 3), [100, 100, 100, 100]) == [105, 205, 305, 405]


def test_a_slow_host_decides_and_the_device_waits() -> None:
    found = ends(HostTicks(40, 50, 10), [20] * 5)
    steps = [after - before for before, after in pairwise(found)]
    assert steps[:3] == [100, 100, 100]
    assert steps[3] == 10, "nothing is left to launch, and the device is done"


def test_a_long_launch_delays_the_tokens_of_the_step_before() -> None:
    clock = StepClock(Costs(HostTicks(0, 30, 0)))
    clock.launch(work(10), 0)
    assert clock.next_end(0) == 30, "the device waited for the last kernel"
    clock.launch(work(10), 0)
    assert clock.next_end(0) == 60, "and the host was busy with the next step"
    clock.close()
    assert clock.next_end(60) == 60, "which is over by then"


@given(
    st.tuples(*[st.integers(0, 50)] * 3).map(lambda host: HostTicks(*host)),
    st.integers(1, 40),
    st.integers(0, 3),
    st.integers(1, 30),
)
def test_a_line_of_steps_that_run_alone_is_what_each_of_them_takes(
    host: HostTicks, base: int, slope: int, count: int
) -> None:
    costs = Costs(host, DecodeLine(base, slope))
    context = count
    for _ in range(20):
        line = alone_line(costs, count, context)
        for seen in {context, context + 7 if line.last_context is None else line.last_context}:
            ticks = alone_ticks(costs, decode_parts(count, seen))
            assert line.base + line.slope * seen == ticks
        if line.last_context is None:
            break
        context = line.last_context + 1
    else:
        pytest.fail("the line never comes to its last part")
