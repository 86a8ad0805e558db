import pytest

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.step import ScheduledSequence, StepPlan
from pagetwin.simulator.cost_model import (
    REFERENCE_COSTS,
    LinearCostModel,
    StepComposition,
    composition,
)
from pagetwin.simulator.step_clock import decode_parts

PLAN = StepPlan(
    step=0,
    scheduled=(
        ScheduledSequence("a/0", 100, 1, samples=True),
        ScheduledSequence("b/0", 7, 30),
        ScheduledSequence("c/0", 200, 1, samples=True),
        ScheduledSequence("d/0", 0, 4, samples=True),
    ),
)


def test_a_step_is_made_of_chunks_decodes_and_samples() -> None:
    assert composition(PLAN) == StepComposition(
        num_prefill_sequences=2,
        num_prefill_tokens=34,
        prefill_area=sum(range(8, 38)) + sum(range(1, 5)),  # query i sees c + i + 1 keys
        num_decode_sequences=2,
        num_prefix_tokens=7,
        num_context_tokens=101 + 201,
        num_samples=3,
    )


def test_decoding_sequences_have_their_share_of_what_is_repeated() -> None:
    assert composition(PLAN, 160).num_repeated_tokens == 160 * 2 // 4
    assert composition(PLAN, 10**6).num_repeated_tokens == 101 + 201, "no more than they see"


def test_the_linear_model_adds_a_price_for_each_part() -> None:
    model = LinearCostModel(
        constant_s=1.0,
        per_prefill_token_s=0.1,
        per_prefill_pair_s=0.001,
        per_decode_sequence_s=0.01,
        per_context_token_s=1e-12,
    )
    area = sum(range(8, 38)) + sum(range(1, 5))
    assert model.ticks(composition(PLAN)) == 10**12 + 34 * 10**11 + area * 10**9 + 2 * 10**10 + 302


@pytest.mark.parametrize("count", [1, 7, 256])
def test_the_decode_line_is_what_a_decoding_step_costs(count: int) -> None:
    base, slope, last = REFERENCE_COSTS.decode_line(count, 0)
    assert last is None
    for context in (count, 1000 * count + 3):
        assert REFERENCE_COSTS.ticks(decode_parts(count, context)) == base + slope * context


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_a_coefficient_that_is_no_number_of_seconds_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="per_prefill_token_s"):
        LinearCostModel(constant_s=1.0, per_prefill_token_s=value)


def test_a_step_that_takes_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="stand still"):
        LinearCostModel(constant_s=0.0)
