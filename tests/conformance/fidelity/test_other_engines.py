"""Another engine's measured requests: read, refused, and run on the twin."""

from pathlib import Path

import msgspec
import pytest

from pagetwin.conformance.fidelity.other_engines import (
    MeasuredRequest,
    judge_measured,
    read_measured,
)
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.simulator.cost_model import LinearCostModel

LINE = {
    "request_id": "bench-0",
    "input_toks": 100,
    "output_toks": 11,
    "arrival_time": 1787267980.0,
    "queued_ts": 50.0,
    "scheduled_ts": 50.1,
    "first_token_ts": 50.2,
    "last_token_ts": 51.2,
}


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_bytes(b"\n".join(msgspec.json.encode({**LINE, **line}) for line in lines))
    return path


def test_requests_that_took_what_the_costs_say_are_predicted(tmp_path: Path) -> None:
    # A prefill of 0.2 s, ten decode steps of 0.1 s, and never two requests at a time.
    costs = LinearCostModel(constant_s=0.1, per_prefill_token_s=0.001)
    alone = [
        {
            "request_id": f"r{i}",
            "queued_ts": 50.0 + 3 * i,
            "first_token_ts": 50.2 + 3 * i,
            "last_token_ts": 51.2 + 3 * i,
        }
        for i in range(4)
    ]
    measures = judge_measured(
        read_measured(write(tmp_path / "requests.jsonl", *alone)),
        costs,
        cache=CacheConfig(num_blocks=64, block_size=16),
        scheduler=SchedulerConfig(max_model_len=512),
    )
    found = {measure.name: measure for measure in measures}
    assert found["ttft_p50"].measured == pytest.approx(0.2)
    assert found["tpot_p99"].measured == pytest.approx(0.1)
    for measure in measures:
        assert measure.error == pytest.approx(0, abs=1e-6), measure


def test_they_are_put_in_order_of_arrival(tmp_path: Path) -> None:
    late = {"request_id": "b", "queued_ts": 60.0, "first_token_ts": 61.0, "last_token_ts": 62.0}
    read = read_measured(write(tmp_path / "requests.jsonl", late, {"request_id": "a"}))
    assert [one.request_id for one in read] == ["a", "b"]
    assert isinstance(read[0], MeasuredRequest)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"input_toks": 0}, "lengths below 1"),
        ({"output_toks": -3}, "lengths below 1"),
        ({"first_token_ts": 40.0}, "times that go back"),
        ({"queued_ts": "soon"}, "not a measured request"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: dict[str, object], named: str) -> None:
    with pytest.raises(TraceError, match=rf"requests\.jsonl:2: .*{named}"):
        read_measured(write(tmp_path / "requests.jsonl", {}, line))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "requests.jsonl"
    empty.write_text("")
    with pytest.raises(TraceError, match="is empty"):
        read_measured(empty)
