"""What the host takes for a step, from steps that tell it."""

import random
from collections import Counter

import pytest

from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.cost_model import StepComposition
from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.host_fit import fit_host
from pagetwin.simulator.costs.step_costs import (
    CalibratedCosts,
    ContextCosts,
    EagerCosts,
    HostCosts,
    StepCosts,
)
from pagetwin.simulator.recordings.steps import Step, StepTable
from pagetwin.simulator.step_clock import decode_parts


def step(count: int, launch_s: float) -> Step:
    return Step(
        parts=decode_parts(count, 100 * count),
        seconds=0.03,
        device_seconds=0.02,
        graph_size=0,
        before_seconds=1e-3 + 5e-6 * count,
        launch_seconds=launch_s,
        wait_seconds=0.0,
        after_seconds=2e-3 + 7e-6 * count,
        is_first=False,
        is_ahead=True,
    )


def test_a_launch_takes_what_launches_take_on_average_but_for_those_that_stood_still() -> None:
    rng = random.Random(1)
    launches = [rng.choice([14e-3, 14e-3, 28e-3]) for _ in range(300)]
    steps = [step(rng.randint(1, 200), launch_s) for launch_s in launches]
    usual = fit_host(StepTable.of(steps), 0.0)
    assert usual.launch_s == pytest.approx(sum(launches) / len(launches))
    stalled = fit_host(StepTable.of([*steps, *(step(10, 0.7) for _ in range(5))]), 0.0)
    assert stalled.launch_s == pytest.approx(usual.launch_s)
    assert usual.before.constant_s == pytest.approx(1e-3, rel=1e-3)
    assert usual.before.per_decode_s == pytest.approx(5e-6, rel=1e-3)
    assert usual.after.per_decode_s == pytest.approx(7e-6, rel=1e-3)


def test_of_too_few_steps_nothing_is_said() -> None:
    table = StepTable.of([step(5, 14e-3)] * 3)
    assert fit_host(table, 0.0).launch_s == 0.0


def test_launches_vary_as_they_were_measured() -> None:
    rng = random.Random(2)
    launches = [rng.choice([14e-3, 14e-3, 28e-3]) for _ in range(300)]
    found = fit_host(StepTable.of([step(1, one) for one in launches]), 0.0, num_launches=32)
    assert set(found.launches_s) == {14e-3, 28e-3}
    assert found.launches_s.count(28e-3) / 32 == pytest.approx(
        launches.count(28e-3) / 300, abs=0.04
    )


def test_a_launch_is_drawn_by_what_the_step_holds_and_each_length_is_as_likely() -> None:
    lengths = tuple(1e-3 * (1 + number) for number in range(8))
    model = CalibratedCosts(
        StepCosts(
            context=ContextCosts(per_token_s=1e-9),
            graph=None,
            eager=EagerCosts(
                products=Curve(knots=(1,), seconds=(1e-3,)),
                per_pair_s=0.0,
                per_chunk_s=0.0,
                per_sample_s=0.0,
            ),
            eager_host=HostCosts(launch_s=4.5e-3, launches_s=lengths),
        ),
        max_num_seqs=8,
    )

    def launch_s(tokens: int, context: int) -> float:
        parts = StepComposition(
            num_prefill_sequences=1,
            num_prefill_tokens=tokens,
            prefill_area=tokens * (tokens + 1) // 2,
            num_decode_sequences=3,
            num_context_tokens=context,
        )
        return to_seconds(model.host_ticks(parts).launch)

    cases = [(tokens, 100 + 3 * again) for tokens in range(2, 202) for again in range(20)]
    drawn = [launch_s(*case) for case in cases]
    assert drawn == [launch_s(*case) for case in cases]
    counts = Counter(drawn)
    assert set(counts) == set(lengths)
    # 4000 draws of one in eight: a standard deviation is 21.
    assert all(abs(count - 500) < 100 for count in counts.values())
    # Steps that only decode depend on nothing but how many do.
    for context in (100, 200):
        assert to_seconds(model.host_ticks(decode_parts(3, context)).launch) == 4.5e-3
