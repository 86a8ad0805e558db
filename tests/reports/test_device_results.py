"""From raw files of a GPU machine to a page: combined, stamped, beside its own peers."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pagetwin.cli import main
from pagetwin.conformance.bench.kernel_result import Ceilings, KernelReport, KernelRow
from pagetwin.conformance.bench.offline_result import ModelRun, OfflineReport, OfflineRow, Pass
from pagetwin.conformance.bench.work import ModelSizes, Work
from pagetwin.conformance.bench.workloads import VOCABULARY, WORKLOADS, BenchRequest
from pagetwin.conformance.environment import Commit
from pagetwin.reports import stamping
from pagetwin.reports.peers import load_peers
from pagetwin.reports.performance_page import DEVICE_TABLES, filled

H200, H100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"
SECONDS = {"uniform": 8.0, "chat": 6.0, "single": 0.5, "shared_prefix": 1.0, "long_prefill": 0.75}
PROVENANCE: dict[str, Any] = {
    "version": "0.1.0",
    "commit": None,
    "sources_sha256": "s1",
    "machine": {"driver": "580"},
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    "seed": 0,
}
MODELS = ("small", "large")


def offline_report(
    model: str, *, device: str = H200, slower: float = 1.0, **changes: Any
) -> OfflineReport:
    invariant = changes.pop("batch_invariant", True)
    sizes = ModelSizes(
        num_layers=1,
        layer_matrix_parameters=1,
        last_layer_parameters=1,
        head_parameters=1,
        weight_bytes=1,
        kv_bytes_per_token=1,
        attention_flops_per_key=1,
    )
    work = Work(
        min_steps=2,
        weight_bytes=10**9,
        kv_bytes=10**9,
        matmul_flops=10**9,
        attention_flops=10**9,
    )
    rows = tuple(
        OfflineRow.of(
            [Pass(seconds=seconds * slower, steps=10)],
            [BenchRequest([1, 2, 3], index)],
            work,
            device=device,
            model=model,
            name=name,
            shrunk_by=1,
        )
        for index, (name, seconds) in enumerate(SECONDS.items(), 1)
    )
    run = ModelRun(config={"batch_invariant": invariant}, startup_s={"import": 2.0}, sizes=sizes)
    report = OfflineReport(**PROVENANCE, device=device, models={model: run}, rows=rows)
    return msgspec.structs.replace(report, **changes)


def kernel_report(device: str = H200) -> KernelReport:
    row = KernelRow.of(
        [10e-6],
        10**6,
        10**9,
        device=device,
        kernel="attention",
        rows=2,
        shape="decode_b1_c1024",
        compared_with="decode_b1_c1024",
        alone_s=[16e-6],
    )
    ceilings = Ceilings(copy_gb_per_s=4000.0, matmul_tflops=700.0)
    return KernelReport(**PROVENANCE, device=device, config={}, ceilings=ceilings, rows=(row,))


@cache
def work_of(name: str) -> tuple[int, int, int]:
    workload = WORKLOADS[name](VOCABULARY)
    prompt_tokens = sum(len(request.prompt_token_ids) for request in workload)
    return len(workload), prompt_tokens, sum(request.num_output_tokens for request in workload)


def raw_peers(folder: Path, *, factor: float) -> list[str]:
    """What the peers' scripts leave, where the peer takes `factor` times SECONDS."""
    documents: dict[str, Any] = {
        "attn": [
            {
                "case": "decode_b1_c1024",
                "fa3": {"us": 16.0 * factor, "GBps": 200.0, "TFLOPS": 1.0},
                "vllm_triton": "RuntimeError('no')",
            }
        ],
        "ceilings": {"copy_GBps": 3900, "read_GBps(torch.sum)": 3950, "matmul_bf16_TFLOPS": 690},
    }
    for model in MODELS:
        runs = {}
        for name, seconds in SECONDS.items():
            requests, prompt_tokens, output_tokens = work_of(name)
            runs[name] = {
                "seconds": [seconds * factor * 1.1, seconds * factor],
                "prompt_tokens": prompt_tokens,
                "output_tokens": output_tokens,
                "n": requests,
            }
        documents[model] = {"model": f"models/{model}", "load_s": 60, "extra": {}, "runs": runs}
    folder.mkdir()
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return [str(folder / f"{name}.json") for name in documents]


def keep_peers(baselines: Path, device: str, *, factor: float, into: str = "raw") -> int:
    files = raw_peers(baselines / f"{into} {device}", factor=factor)
    given = ["--device", device, "--date", "2026-11-28", "--version", "vllm=9.9"]
    return main(["bench", "peers", *files, *given, "--baselines", str(baselines)])


def write(path: Path, result: OfflineReport | KernelReport) -> str:
    path.write_bytes(msgspec.json.encode(result))
    return str(path)


@pytest.fixture
def baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """H200: both models, combined and stamped, and the kernels; no peers yet."""
    monkeypatch.setattr(stamping, "commit", lambda: Commit("c" * 40, dirty=False))
    monkeypatch.setattr(stamping, "sources_sha256", lambda: "s1")
    names = []
    for name, changes in (
        ("offline", {"slower": 1.05}),
        ("offline_not_invariant", {"batch_invariant": False}),
    ):
        parts = [
            write(tmp_path / f"{model}.json", offline_report(model, **changes)) for model in MODELS
        ]
        names.append(str(tmp_path / f"h200_{name}.json"))
        assert main(["bench", "combine", *parts, "--out", names[-1]]) == 0
    names.append(write(tmp_path / "h200_kernels.json", kernel_report()))
    assert main(["bench", "stamp", *names]) == 0
    return tmp_path


def page(baselines: Path, *kinds: str, device: str = "h200") -> str:
    marks = [f"<!-- table: {kind} {device} -->\n<!-- end -->\n" for kind in kinds]
    return filled("\n".join(marks), baselines)


def test_every_table_of_a_device_is_made_from_its_files(baselines: Path) -> None:
    assert keep_peers(baselines, H100, factor=7.77) == 0
    assert keep_peers(baselines, H200, factor=2.1) == 0
    assert [one.device for one in load_peers(baselines)] == [H100, H200]
    text = page(baselines, *DEVICE_TABLES)
    assert "Not " not in text
    engine = page(baselines, "engine")
    assert engine.count("| 2.00 |") == 10, "the peer took 2.1 times what we took 1.05 times"
    assert "vLLM 9.9" in engine
    assert "cccccccccc" in page(baselines, "setup")
    assert "| 33.6 | 200 | 1.00 | 2.10 |" in page(baselines, "attention")
    assert "3,900" in page(baselines, "ceilings")


def test_the_price_of_equal_bits_is_a_row_for_each_workload(baselines: Path) -> None:
    lines = page(baselines, "invariance").splitlines()[4:-2]
    assert lines[0] == "| small | uniform | 8.40 | 8.00 | +5.0% |"
    assert len(lines) == 11
    assert lines[-1] == "| geometric mean |  |  |  | +5.0% |"


def test_a_peer_of_another_device_changes_nothing_on_a_devices_tables(baselines: Path) -> None:
    """No ratio, no column, no number: the page is the one without any peers."""
    (baselines / "peers.json").write_text('{"schema": "pagetwin.peers/2", "devices": []}')
    alone = page(baselines, *DEVICE_TABLES)
    assert "ratio" not in alone
    assert keep_peers(baselines, H100, factor=7.77) == 0
    assert page(baselines, *DEVICE_TABLES) == alone
    assert keep_peers(baselines, H200, factor=2.1) == 0
    beside_ours = page(baselines, *DEVICE_TABLES)
    assert "ratio" in beside_ours
    assert keep_peers(baselines, H100, factor=5.55, into="again") == 0
    assert page(baselines, *DEVICE_TABLES) == beside_ours


def test_a_file_named_after_another_device_is_refused(
    baselines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (baselines / "h200_offline.json").rename(baselines / "h100_offline.json")
    (baselines / "page.md").write_text("<!-- table: steps h100 -->\n<!-- end -->")
    command = ["bench", "tables", str(baselines / "page.md"), "--baselines", str(baselines)]
    assert main(command) == 2
    assert "was measured on 'NVIDIA H200'" in capsys.readouterr().err


def test_floors_are_never_made_with_the_ceilings_of_another_card(baselines: Path) -> None:
    write(baselines / "h200_kernels.json", kernel_report("NVIDIA H200 NVL"))
    assert "Not comparable: the engine ran on NVIDIA H200, the ceil" in page(baselines, "floors")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sources_sha256": "s2", "batch_invariant": False}, "sources_sha256 is 's1'"),
        ({"recorded": True, "batch_invariant": False}, "recorded is False"),
        ({"batch_invariant": True}, "small ran with batch_invariant=True"),
        ({"rows": (), "batch_invariant": False}, "they have no workload in common"),
    ],
)
def test_a_price_is_only_told_of_runs_that_differ_in_nothing_else(
    baselines: Path, changes: dict[str, Any], named: str
) -> None:
    write(baselines / "h200_offline_not_invariant.json", offline_report("small", **changes))
    assert f"Not comparable: {named}" in page(baselines, "invariance")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"device": H100}, "device is 'NVIDIA H200' and 'NVIDIA H100"),
        ({"sources_sha256": "s2"}, "sources_sha256"),
        ({"recorded": True}, "recorded"),
        ({"model": "small"}, "two results hold small"),
    ],
)
def test_results_of_other_runs_are_not_combined(
    tmp_path: Path, changes: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "one.json", offline_report("small"))
    other = write(tmp_path / "other.json", offline_report(**{"model": "large", **changes}))
    assert main(["bench", "combine", one, other, "--out", str(tmp_path / "both.json")]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "both.json").exists()


def test_what_did_not_run_is_said_and_kept_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keep_peers(tmp_path, H200, factor=1.0) == 0
    assert "vllm_triton did not run on decode_b1_c1024" in capsys.readouterr().out
    [entry] = load_peers(tmp_path)
    assert entry.attention[0].vllm_triton is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: run.pop("runs"), "neither an engine's runs"),
        (lambda run: run["extra"].update(enforce_eager=True), "enforce_eager"),
        (lambda run: run["runs"]["chat"].update(output_tokens=1), "that is other work"),
        (lambda run: run["runs"]["chat"].update(seconds=[]), "chat has 0 passes"),
        (lambda run: run["runs"].update(tweets=run["runs"]["chat"]), "'tweets' is none of"),
        (lambda run: run.update(model="elsewhere/large"), "same model"),
    ],
)
def test_other_work_than_ours_is_refused_and_the_entries_stay(
    tmp_path: Path, change: Any, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keep_peers(tmp_path, H100, factor=1.0) == 0
    before = (tmp_path / "peers.json").read_bytes()
    files = raw_peers(tmp_path / "new", factor=2.0)
    small = tmp_path / "new" / "small.json"
    document = json.loads(small.read_text())
    change(document)
    small.write_text(json.dumps(document))
    given = ["--device", H200, "--date", "2026-11-28", "--version", "vllm=9.9"]
    assert main(["bench", "peers", *files, *given, "--baselines", str(tmp_path)]) == 2
    assert named in capsys.readouterr().err
    assert (tmp_path / "peers.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--date", "yesterday", "--version", "vllm=1"], "--date yesterday"),
        (["--date", "2026-11-28", "--version", "vllm"], "NAME=VERSION"),
        (["--date", "2026-11-28", "--version", "torch=2"], "no --version vllm"),
    ],
)
def test_a_peer_without_its_date_or_version_is_refused(
    tmp_path: Path, given: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "peers", "x.json", "--device", H200, *given, "--baselines", str(tmp_path)]
    assert main(command) == 2
    assert named in capsys.readouterr().err
