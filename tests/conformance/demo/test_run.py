"""The main job itself, on the real model."""

import json
from pathlib import Path

import pytest

from pagetwin.cli import main
from pagetwin.conformance.demo.result import MUST_HAPPEN
from pagetwin.engine.trace import PlanRecord, read_history


@pytest.mark.model
@pytest.mark.slow
def test_engine_twin_and_hugging_face_agree_on_a_real_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--requests", "20", "--out", str(tmp_path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["agreed"] is True
    for compared, differences in (
        ("decisions_compared", "decision_differences"),
        ("block_tables_compared", "block_table_differences"),
        ("counters_compared", "counter_differences"),
        ("invariants_checked", "invariant_violations"),
        ("tokens_compared", "token_mismatches"),
    ):
        assert summary[compared] > 0
        assert summary[differences] == 0
    assert all(summary[name] > 0 for name in MUST_HAPPEN)
    assert summary["output_tokens_per_s"] > 0
    plans = [r for r in read_history(tmp_path / "history.jsonl") if isinstance(r, PlanRecord)]
    assert len(plans) == summary["steps"]
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
