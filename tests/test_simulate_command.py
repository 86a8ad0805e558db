"""`pagetwin simulate` from the outside: files, JSON, and errors for people."""

import json
from pathlib import Path

import pytest

from pagetwin.cli import main
from pagetwin.engine.trace import HeaderRecord, ResultRecord, read_history

LOAD = "poisson:rate=4,input=uniform:20:200,output=20,requests=60"
MODEL = ["--model", "Llama-3.1-8B", "--num-blocks", "400", "--max-model-len", "2048"]


def run(*arguments: str) -> int:
    return main(["simulate", *arguments])


def test_a_run_is_told_in_words_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--workload", LOAD, *MODEL, "--slo", "ttft_p95<500ms") == 0
    words = capsys.readouterr().out
    for part in (
        "calibrated: llama-3.1-8b on",
        "TTFT",
        "60 of 60 finished",
        "ttft_p95<500ms",
        "met",
        "Little",
    ):
        assert part in words
    plain = ["--profile", "none"]
    assert run("--workload", LOAD, *MODEL, *plain, "--seeds", "2", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "pagetwin.simulation/1"
    assert [one["seed"] for one in report["runs"]] == [0, 1]
    assert report["runs"][0]["num_finished"] == 60
    assert "uncalibrated" in report["runs"][0]["costs"]
    interval = report["intervals"]["ttft_s.p95"]
    assert interval["low"] < interval["value"] < interval["high"]


def test_runs_side_by_side_say_what_runs_one_after_the_other_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--workload", LOAD, *MODEL, "--out", str(tmp_path), "--record") == 0
    capsys.readouterr()
    trace = ["--trace", str(tmp_path / "replica-00.jsonl"), "--trim"]
    for source in (["--workload", LOAD], trace):
        said = []
        for processes in ("1", "2"):
            several = ["--seeds", "2", "--loads", "0.5,2", "--processes", processes]
            assert run(*source, *MODEL, *several, "--json") == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        assert len(json.loads(said[0])["curve"]) == 2


def test_the_files_appear_together_and_the_steps_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--replicas", "2", "--router", "round_robin", "--out", str(out), "--record"]
    assert run("--workload", LOAD, *MODEL, *options) == 0
    assert str(out) in capsys.readouterr().out
    names = ["requests.csv", "simulation.html", "summary.json", "timeline.csv", "trace.json"]
    histories = ["replica-00.jsonl", "replica-01.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names + histories)
    finished = 0
    for name in histories:
        records = list(read_history(out / name))
        assert isinstance(records[0], HeaderRecord)
        finished += sum(len(r.finished) for r in records if isinstance(r, ResultRecord))
    assert finished == 60


def test_a_recorded_run_is_a_trace_for_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--workload", LOAD, *MODEL, "--out", str(tmp_path), "--record") == 0
    capsys.readouterr()
    history = str(tmp_path / "replica-00.jsonl")
    assert run("--trace", history, *MODEL, "--json") == 0
    again = json.loads(capsys.readouterr().out)["runs"][0]
    before = json.loads((tmp_path / "summary.json").read_text())["runs"][0]
    assert again["num_steps"] == before["num_steps"]
    assert again["tpot_s"]["mean"] == pytest.approx(before["tpot_s"]["mean"])


def test_stepping_and_pools_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    pools = ["--pool", "role=prefill,gpu=h200", "--pool", "role=decode,replicas=2"]
    times = []
    for stepping in ([], ["--stepping"]):
        assert run("--workload", LOAD, *MODEL, *pools, *stepping, "--json") == 0
        times.append(json.loads(capsys.readouterr().out)["runs"][0]["e2e_s"])
    assert times[0] == times[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", LOAD, "--model", "gpt-9"], "model 'gpt-9' is neither a file nor known"),
        (["--workload", LOAD, *MODEL, "--gpu", "tpu"], "GPU 'tpu' is unknown; datasheets are here"),
        (["--workload", LOAD, *MODEL, "--tp", "3"], "tensor_parallel=3 does not divide"),
        (["--workload", LOAD, *MODEL, "--gpu", "h1000"], "GPU 'h1000' is unknown"),
        (["--workload", LOAD, *MODEL, "--replicas", "0"], "replicas=0 is below 1"),
        (["--workload", LOAD, "--model", "Llama-3.1-8B", "--block-size", "0"], "block_size=0 is"),
        (["--workload", LOAD, *MODEL, "--router", "dice"], "router 'dice' is unknown; use one of"),
        (
            ["--workload", LOAD, *MODEL, "--slo", "fast"],
            "'fast' is no term; write METRIC_pNN<LIMIT",
        ),
        (["--workload", LOAD, *MODEL, "--seeds", "0"], "--seeds 0 is below 1"),
        (["--workload", LOAD, *MODEL, "--processes", "0"], "--processes 0 is below 1"),
        (["--workload", LOAD, *MODEL, "--seed", "-1"], "seed=-1 is outside"),
        (["--workload", LOAD, *MODEL, "--policy", "mine"], "mine"),
        (["--workload", LOAD, *MODEL, "--pool", "gpus=2"], "is not KNOB=VALUE"),
        (["--workload", LOAD, *MODEL, "--record"], "--record writes histories of one run"),
        (["--workload", "poisson:rate=-1,input=1,output=1,requests=1", *MODEL], "rate=-1.0 is not"),
        (["--workload", "offline:input=5000,output=1,requests=9", *MODEL], "5000 prompt tokens"),
        (["--trace", "/no/such.csv", *MODEL], "/no/such.csv: there is no such file"),
        (MODEL, "give either --workload SPEC or --trace FILE"),
        (["--workload", LOAD], "Missing option '--model'"),
    ],
)
def test_bad_input_is_explained_and_leaves_no_file(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if "--record" not in arguments:
        arguments = [*arguments, "--out", str(out)]
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("pagetwin: ")
    assert "Traceback" not in said.err
    assert (said.out, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "the trace has no entries"),
        ("5,3,4\n2,3,4\n", "t.csv:3: the timestamp goes back; sort the trace"),
        ("1,-3,4\n", "t.csv:2: -3 prompt tokens"),
        ("1,nan,4\n", "t.csv:2: input_tokens 'nan' is not a whole number"),
        ("1,3,4\n2,9999,4\n", "'r0000001' has 9999 prompt tokens"),
    ],
)
def test_a_bad_trace_is_explained(
    rows: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival,input_tokens,output_tokens\n" + rows)
    assert run("--trace", str(trace), *MODEL, "--out", str(tmp_path / "out")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_cut_or_left_out_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival,input_tokens,output_tokens\n1,3,4\n2,9999,4\n")
    assert run("--trace", str(trace), *MODEL, "--trim", "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["num_finished"] == 2
    assert run("--trace", str(trace), *MODEL, "--skip-unfit", "--json") == 0
    run_ = json.loads(capsys.readouterr().out)["runs"][0]
    assert (run_["num_finished"], run_["num_refused"]) == (1, 1)
    trace.write_text("arrival,input_tokens,output_tokens\n2,9999,4\n")
    out = tmp_path / "out"
    assert run("--trace", str(trace), *MODEL, "--skip-unfit", "--out", str(out)) == 0
    words = capsys.readouterr().out
    assert "0 of 1 finished, 1 refused" in words
    assert "p50" not in words, "a table without a row"
    assert "✓" not in (out / "simulation.html").read_text()


def test_the_page_draws_the_run_and_other_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--loads", "2,0.5,2", "--slo", "ttft_p95<500ms", "--out", str(out)]
    assert run("--workload", LOAD, *MODEL, *options, "--json") == 0
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert [point["factor"] for point in curve] == [0.5, 2.0]
    slow, fast = (point["run"]["duration_s"] for point in curve)
    assert fast < slow
    page = (out / "simulation.html").read_text()
    assert page.count("<svg") == 5
    assert "✓" in page
    assert "<script" not in page
    assert run("--workload", LOAD, *MODEL, "--loads", "1,zero") == 2
    assert "'zero' is no number above 0" in capsys.readouterr().err


def test_a_page_is_not_green_where_the_objective_is_missed(tmp_path: Path) -> None:
    options = ["--slo", "ttft_p95<0.001ms", "--out", str(tmp_path)]
    assert run("--workload", LOAD, *MODEL, *options) == 0
    page = (tmp_path / "simulation.html").read_text()
    assert "✓" not in page
    assert "objective missed: ttft_p95&lt;0.001ms" in page


def test_a_queue_that_grows_keeps_no_promise_on_its_times(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flood = "poisson:rate=500,input=100,output=20,requests=2000"
    options = ["--slo", "e2e_p50<1000s,tpot_p95<1000s", "--max-num-seqs", "4", "--json"]
    assert run("--workload", flood, *MODEL, *options) == 0
    [only] = json.loads(capsys.readouterr().out)["runs"]
    assert only["e2e_s"] is None
    assert [one["met"] for one in only["goodput"]["verdicts"]] == [False, True]


def test_a_cache_of_another_dtype_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--workload", LOAD, *MODEL, "--kv-dtype", "float8") == 0
    assert "uncalibrated" in capsys.readouterr().out
