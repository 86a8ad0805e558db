import pytest

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.step import ScheduledSequence, StepPlan
from pagetwin.simulator.cost_model import LinearCostModel, StepComposition, composition

PLAN = StepPlan(
    step=0,
    scheduled=(
        ScheduledSequence("a/0", 100, 1),
        ScheduledSequence("b/0", 0, 30),
        ScheduledSequence("c/0", 200, 1),
    ),
)


def test_a_step_is_made_of_prefill_tokens_decodes_and_context() -> None:
    assert composition(PLAN) == StepComposition(
        num_prefill_tokens=30, num_decode_sequences=2, num_context_tokens=101 + 30 + 201
    )


def test_the_linear_model_adds_a_price_for_each_part() -> None:
    model = LinearCostModel(
        constant_s=1.0,
        per_prefill_token_s=0.1,
        per_decode_sequence_s=0.01,
        per_context_token_s=0.001,
    )
    assert model.seconds(PLAN) == pytest.approx(1 + 3 + 0.02 + 0.332)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_a_coefficient_that_is_no_number_of_seconds_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="per_prefill_token_s"):
        LinearCostModel(constant_s=0.0, per_prefill_token_s=value)
