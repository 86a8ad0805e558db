"""Steps that no graph runs: the device's terms are found, whatever the host was doing."""

import random

import pytest

from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.cost_model import StepComposition
from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.eager_fit import fit_eager
from pagetwin.simulator.costs.floors import Floors
from pagetwin.simulator.costs.step_costs import (
    CalibratedCosts,
    ContextCosts,
    EagerCosts,
    GraphCosts,
    StepCosts,
)
from pagetwin.simulator.recordings.steps import Step, StepTable

LAUNCH_S = 10e-3
CONTEXT = ContextCosts(per_token_s=30e-9, per_position_s=400e-9)
GRAPH = GraphCosts(products=Curve(knots=(1, 64), seconds=(1e-3, 1e-3)))
TRUE = EagerCosts(
    products=Curve(knots=(1, 64, 16384), seconds=(1e-3, 1e-3, 60e-3)),
    per_pair_s=1e-9,
    per_chunk_s=20e-6,
    per_sample_s=0.0,
    per_context_s=60e-9,
)


def model(eager: EagerCosts) -> CalibratedCosts:
    return CalibratedCosts(StepCosts(context=CONTEXT, graph=GRAPH, eager=eager), max_num_seqs=64)


def mixed(rng: random.Random) -> StepComposition:
    """A step of a few prompts, beside sequences that decode or alone."""
    chunks, decodes = rng.randint(1, 20), rng.choice([0, rng.randint(1, 60)])
    tokens = rng.randint(2 * chunks, 16000)
    return StepComposition(
        num_prefill_sequences=chunks,
        num_prefill_tokens=tokens,
        prefill_area=tokens * tokens // (2 * chunks),
        num_decode_sequences=decodes,
        num_context_tokens=decodes * rng.randint(10, 12000),
        num_samples=chunks + decodes,
    )


def measured(parts: StepComposition, launch_s: float) -> Step:
    """As long as the device computes, or the host launches."""
    device_s = to_seconds(model(TRUE).ticks(parts))
    return Step(
        parts=parts,
        seconds=max(device_s, launch_s),
        device_seconds=max(device_s, launch_s),
        graph_size=0,
        launch_seconds=launch_s,
        wait_seconds=0.0,
        is_first=False,
        is_ahead=True,
    )


def test_steps_that_took_their_launch_say_nothing_of_the_device() -> None:
    rng = random.Random(1)
    # Now and then the host is held up, and launches three times as long.
    steps = [measured(mixed(rng), LAUNCH_S * rng.choice([1, 1, 3])) for _ in range(400)]
    assert sum(step.device_seconds == step.launch_seconds == 3 * LAUNCH_S for step in steps) > 20
    table = StepTable.of(steps)
    _, found = fit_eager(
        table, table.device_seconds, Floors(), context=CONTEXT, graph=GRAPH, launch_s=LAUNCH_S
    )
    assert found.per_pair_s == pytest.approx(TRUE.per_pair_s, rel=0.01)
    assert found.per_context_s == pytest.approx(TRUE.per_context_s, rel=0.01)
    for parts in [mixed(rng) for _ in range(100)]:
        true_s = to_seconds(model(TRUE).ticks(parts))
        if true_s > LAUNCH_S:
            assert to_seconds(model(found).ticks(parts)) == pytest.approx(true_s, rel=0.03)


def test_beside_prompts_the_keys_of_a_sequence_are_not_divided() -> None:
    def beside(decodes: int, context: int) -> float:
        parts = StepComposition(
            num_prefill_sequences=1,
            num_prefill_tokens=1000,
            num_decode_sequences=decodes,
            num_context_tokens=context,
        )
        return to_seconds(model(TRUE).ticks(parts))

    many = beside(8, 8000) - beside(8, 0)
    one = beside(1, 8000) - beside(1, 0)
    assert many == pytest.approx(8000 * 60e-9 + 1000 * 400e-9)
    assert one == pytest.approx(8000 * 60e-9 + 8000 * 400e-9)
