"""The cases of `pagetwin bench kernels`, small: each launches, and says what it moves."""

from collections.abc import Sequence

import pytest
import torch

from pagetwin.conformance.bench.attention_cases import Batch, _step_inputs
from pagetwin.conformance.bench.case import Case
from pagetwin.conformance.bench.kernels import all_cases, chosen, measure_kernels
from pagetwin.conformance.bench.shapes import ModelShape, Shapes
from pagetwin.conformance.bench.timing import Launch, Timers
from pagetwin.engine.errors import ConfigError

TINY = ModelShape(
    name="tiny",
    hidden=64,
    inner=64,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    num_layers=1,
    vocab=300,
    qk_norm=True,
)
SMALL = {"num_heads": 4, "num_kv_heads": 2, "head_size": 64}
SHAPES = Shapes(
    models=(TINY,),
    rows=(3,),
    samples=(2,),
    attention=[
        Batch("decode", [1, 1], [40, 7], **SMALL),
        Batch("mixed", [1, 20, 3], [30, 33, 3], **SMALL),
    ],
)
CASES = all_cases(SHAPES)


class Silent:
    def begin(self, phase: str, total: int | None) -> None: ...

    def advance_to(self, done: int) -> None: ...


def launch_once(launches: Sequence[Launch]) -> list[float]:
    """A timer that takes each launch for 10 us."""
    launches[0]()
    return [1e-5]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.kernel} {case.rows} x {case.shape}"
)
def test_a_case_launches(case: Case, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagetwin.conformance.bench.timing.COLD_BYTES", 1)
    monkeypatch.setattr("pagetwin.conformance.bench.kernels.COPIED_ELEMENTS", 4)
    monkeypatch.setattr("pagetwin.conformance.bench.kernels.MATRIX_SIZE", 4)
    report = measure_kernels([case], Timers(launch_once, launch_once), device, Silent())
    [row] = report.rows
    assert row.error is None
    assert row.us == pytest.approx(10)
    assert row.gb_per_s == pytest.approx(case.num_bytes / 1e-5 / 1e9)
    assert (row.alone_us is None) == (case.compared_with is None)


def test_a_case_that_fails_is_a_row_that_says_why(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagetwin.conformance.bench.kernels.COPIED_ELEMENTS", 4)
    monkeypatch.setattr("pagetwin.conformance.bench.kernels.MATRIX_SIZE", 4)

    def fail(source: object) -> Launch:
        raise ValueError("too wide\nfor this tile")

    broken = Case(kernel="odd", shape="1", rows=1, num_bytes=1, flops=0, make=fail)
    timers = Timers(launch_once, launch_once)
    [row] = measure_kernels([broken], timers, device, Silent()).rows
    assert row.error == "ValueError: too wide"
    assert row.us == 0


def test_kernels_are_chosen_by_name() -> None:
    assert {case.kernel for case in chosen(CASES, ["rms_norm"])} == {"rms_norm"}
    assert chosen(CASES, []) == CASES
    with pytest.raises(ConfigError, match=r"'norm' is unknown; use some of .*rms_norm"):
        chosen(CASES, ["norm"])


def test_keys_are_distinct() -> None:
    full = all_cases(Shapes())
    assert len({(case.kernel, case.rows, case.shape) for case in full}) == len(full)


def test_the_inputs_of_an_attention_case_are_those_of_a_step() -> None:
    inputs = _step_inputs(Batch("mixed", [1, 3], [30, 4]))
    assert inputs.positions.tolist() == [29, 1, 2, 3]
    assert inputs.query_start_loc.tolist() == [0, 1, 4]
    assert inputs.token_rows.tolist() == [0, 1, 1, 1]
