"""Faults of the engine that computes: the same rules, and bits where steps are alike."""

from collections.abc import Iterator

import msgspec
import pytest

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.scenarios import play_and_judge
from pagetwin.conformance.faults.campaign import Campaign
from pagetwin.conformance.faults.fault import (
    AbortAt,
    AllocationFails,
    AnyFault,
    ClockJumps,
    PoolEmpty,
    ResultTwice,
    RowFails,
    StepFails,
    SwapFails,
)
from pagetwin.engine.model_runner import ModelRunner
from pagetwin.engine.step import StepPlan, StepResult
from pagetwin.engine.trace import ResultRecord


@pytest.fixture(scope="module")
def engine(one_thread: None) -> Iterator[Adapter]:
    adapter = make_adapter("pagetwin:random?device=cpu")
    yield adapter
    adapter.close()


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (StepFails(number=2), "recompute"),
        (AllocationFails(number=5, allocation=0), "swap"),
        (AllocationFails(number=9, allocation=40), "recompute-async"),
        (SwapFails(number=1), "swap"),
        (PoolEmpty(number=6), "swap-async"),
        (AbortAt(number=5, request_id="b", in_flight=True), "recompute-async"),
        (ClockJumps(), "recompute"),
        (ResultTwice(number=4), "recompute"),
    ],
)
def test_a_fault_hurts_only_whom_it_hits(fault: AnyFault, name: str, engine: Adapter) -> None:
    own = Campaign(engine)
    judged = own.judge(msgspec.structs.replace(own.settings()[name], fault=fault))
    assert judged.struck
    assert not judged.violations


@pytest.mark.parametrize(("request_id", "number"), [("a", 0), ("c", 4), ("d", 2)])
def test_nan_logits_end_one_request_and_change_no_bit_of_its_neighbours(
    request_id: str, number: int, engine: Adapter
) -> None:
    own = Campaign(engine)
    fault = RowFails(number=number, request_id=request_id)
    judged = own.judge(msgspec.structs.replace(own.settings()["recompute"], fault=fault))
    assert not judged.violations
    assert judged.num_ended == 1
    assert judged.goals["neighbours compared bit by bit"] == 1
    assert judged.goals["neighbours that went on"] > 0


def test_a_neighbour_that_changes_by_a_bit_is_seen(
    engine: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a step with a broken row every score is another in its last place."""
    execute = ModelRunner.execute

    def touched(self: ModelRunner, plan: StepPlan) -> StepResult:
        result = execute(self, plan)
        if not result.failed:
            return result
        scores = {
            name: msgspec.structs.replace(
                one, logprobs=tuple(score * (1 + 2**-50) for score in one.logprobs)
            )
            for name, one in result.logprobs.items()
        }
        return msgspec.structs.replace(result, logprobs=scores)

    monkeypatch.setattr(ModelRunner, "execute", touched)
    own = Campaign(engine)
    fault = RowFails(number=2, request_id="a")
    judged = own.judge(msgspec.structs.replace(own.settings()["recompute"], fault=fault))
    assert any("bits" in one.message for one in judged.violations)


def test_rows_of_failing_requests_fail_as_the_twin_is_told(engine: Adapter) -> None:
    assert engine.capabilities().has(Flag.FAILING_ROWS)
    setting = Campaign(engine).settings()["recompute"]
    scenario = msgspec.structs.replace(setting, failing_requests=("a", "c"))
    played = play_and_judge(scenario, engine)
    assert not played.violations
    failed = {
        name for one in played.records if isinstance(one, ResultRecord) for name in one.failed
    }
    assert failed
    assert failed <= {"a/0", "c/0"}
