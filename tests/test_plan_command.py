"""`pagetwin plan` as a user meets it: an answer with its files, and refusals that help."""

import json
from pathlib import Path

import pytest

from pagetwin.cli import main
from pagetwin.simulator.costs.committed import DATA

QWEN_H100 = DATA / "h100_qwen3-0.6b.profile.json"
BASE = [
    "plan",
    "--model",
    "SmolLM2-135M",
    "--workload",
    "poisson:rate=5,input=32,output=4,requests=60",
    "--tp",
    "1",
    "--max-gpus",
    "2",
    "--processes",
    "1",
]


def test_an_answer_and_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan"
    command = [*BASE, "--slo", "ttft_p95<1s", "--gpus", "l40s", "--out", str(out), "--json"]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["winner"].startswith("1 x L40S")
    assert answer["costs"].startswith("uncalibrated")
    assert answer["load_met"] >= 1
    assert answer == json.loads((out / "plan.json").read_text())
    assert "1 x L40S" in (out / "plan.html").read_text()
    num_trials = (out / "trials.jsonl").read_text().count("\n")
    assert main(command) == 0
    assert (out / "trials.jsonl").read_text().count("\n") == num_trials
    assert json.loads(capsys.readouterr().out) == answer


def test_an_objective_that_nothing_meets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, "--slo", "ttft_p95<0.01ms", "--gpus", "l40s"]) == 2
    error = capsys.readouterr().err
    assert "nothing within 2 GPUs meets ttft_p95<0.01ms" in error
    assert "over its limit" in error


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--slo", "speed<1s"], "'speed<1s' is no term"),
        (["--slo", "ttft_p95<1s", "--gpus", "h900"], "GPU 'h900' is unknown"),
        (["--slo", "ttft_p95<1s", "--price", "h100"], "is not GPU=USD"),
        (["--slo", "ttft_p95<1s", "--tp", "two"], "'two' is no number above 0"),
        (["--slo", "ttft_p95<1s", "--trace", "missing.csv"], "either --workload SPEC or --trace"),
        (["--slo", "ttft_p95<1s", "--profile", "missing.json"], "missing.json"),
        (["--slo", "ttft_p95<1s", "--requests", "5"], "--requests 5 is of a --trace"),
        (["--slo", "ttft_p95<1s", "--max-seeds", "2"], "--max-seeds 2 is below 3"),
        (["--slo", "ttft_p95<1s", "--confidence", "nan"], "--confidence nan is not between"),
        (["--slo", "ttft_p95<1s", "--kv-dtypes", "auto,int7"], "dtype 'int7' is unknown"),
        (["--slo", "ttft_p95<1s", "--price", "l40s=1"], "--price is of L40S, which is none of"),
        (["--slo", "ttft_p95<1s", "--profile", str(QWEN_H100)], "the profile is of another"),
    ],
)
def test_refusals_say_what_is_wrong(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, *options]) == 2
    assert complaint in capsys.readouterr().err


def costs_of(options: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """By candidate of one replica, the first word of where its times are from."""
    workload = "poisson:rate=5,input=32,output=4,requests=60"
    base = ["--model", "Qwen3-0.6B", "--workload", workload, "--slo", "ttft_p95<1s"]
    knobs = ["--max-gpus", "1", "--tp", "1", "--processes", "1", "--json"]
    assert main(["plan", *base, *knobs, *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    return {
        row["candidate"][: len("1 x H100")]: row["costs"].partition(":")[0]
        for row in answer["trials"]
    }


def test_costs_are_those_that_were_measured_where_they_were(
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = ["--gpus", "h100,h200,a100"]
    measured = {"1 x H100": "calibrated", "1 x H200": "calibrated", "1 x A100": "uncalibrated"}
    assert costs_of(both, capsys) == measured
    assert costs_of([*both, "--profile", str(QWEN_H100)], capsys) == measured
    roofline = dict.fromkeys(measured, "uncalibrated")
    assert costs_of([*both, "--profile", "none"], capsys) == roofline
    assert costs_of([*both, "--dtype", "float16"], capsys) == roofline
