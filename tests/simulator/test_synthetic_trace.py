"""The shipped trace is what its generator makes, and has the statistics that it states."""

from pathlib import Path

import numpy as np
import pytest

from pagetwin.simulator.synthetic_trace import (
    CONTEXT_QUANTILES,
    GAP_MEAN_S,
    GAP_VARIATION,
    GENERATED_QUANTILES,
    LEVELS,
    main,
    write_trace,
)
from pagetwin.simulator.workloads.trace_files import read_trace, synthetic_trace_path


def test_the_shipped_file_is_what_the_generator_makes(tmp_path: Path) -> None:
    assert main([str(tmp_path / "made.csv")]) == 0
    assert (tmp_path / "made.csv").read_bytes() == synthetic_trace_path().read_bytes()


def test_another_seed_makes_another_trace(tmp_path: Path) -> None:
    write_trace(tmp_path / "a.csv", num_rows=20, seed=1)
    assert main([str(tmp_path / "b.csv"), "20", "2"]) == 0
    assert (tmp_path / "a.csv").read_bytes() != (tmp_path / "b.csv").read_bytes()


def test_the_shipped_trace_is_close_to_its_targets() -> None:
    entries = list(read_trace(synthetic_trace_path()))
    gaps = np.diff([entry.arrival_s for entry in entries])
    assert gaps.mean() == pytest.approx(GAP_MEAN_S, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(GAP_VARIATION, rel=0.05)
    inner = slice(1, -2)  # between 5 % and 95 %: 200 rows say little beyond
    for name, targets in (
        ("prompt_tokens", CONTEXT_QUANTILES),
        ("output_tokens", GENERATED_QUANTILES),
    ):
        lengths = [getattr(entry, name) for entry in entries]
        assert np.quantile(lengths, LEVELS[inner]) == pytest.approx(targets[inner], rel=0.05)


def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["out.csv", "many"]) == 2
    assert "usage" in capsys.readouterr().out
