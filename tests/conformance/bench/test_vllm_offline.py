"""The script that times vLLM, on a made-up one: it asks for our work, what it writes is read."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from pagetwin.conformance.bench import vllm_offline
from pagetwin.conformance.bench.workloads import WORKLOADS
from pagetwin.reports.peer_files import Session, read_peers


class MadeUp:
    """Counts what is asked of it; `short` outputs lack a token."""

    short = False
    log: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, **knobs: Any) -> None:
        self.log[:] = [("made", knobs)]

    def reset_prefix_cache(self) -> None:
        self.log.append(("reset", None))

    def generate(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        asked = [
            (len(prompt["prompt_token_ids"]), one.max_tokens)
            for prompt, one in zip(prompts, params, strict=True)
        ]
        self.log.append(("ran", asked))
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * (count - self.short))])
            for _, count in asked
        ]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[MadeUp]:
    module: Any = ModuleType("vllm")
    module.LLM = MadeUp
    module.SamplingParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    return MadeUp


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm_offline", *arguments])
    vllm_offline.main()


def test_every_pass_begins_with_an_empty_prefix_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vllm: type[MadeUp]
) -> None:
    run(monkeypatch, "models/tiny", str(tmp_path / "out.json"), "single", "long_prefill")
    made, *calls = vllm.log
    assert made[1]["load_format"] == "dummy"
    assert [what for what, _ in calls] == ["reset", "ran"] * 5
    assert [asked for what, asked in calls if what == "ran"] == [
        [(32, 8)],
        *2 * [[(128, 256)]],
        *2 * [16 * [(8192, 16)]],
    ]


def test_what_it_writes_is_kept_as_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "models/tiny", str(tmp_path / "out.json"))
    session = Session.of("a GPU", "2026-11-28", ["vllm=1"], "made up")
    peers = read_peers([tmp_path / "out.json"], session)
    assert [row.workload for row in peers.rows] == list(WORKLOADS)
    assert all(len(row.seconds) == 2 and row.model == "tiny" for row in peers.rows)


def test_outputs_of_other_lengths_are_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vllm: type[MadeUp]
) -> None:
    monkeypatch.setattr(vllm, "short", True)
    with pytest.raises(RuntimeError, match="other than was asked for"):
        run(monkeypatch, "models/tiny", str(tmp_path / "out.json"), "single")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("arguments", [["models/tiny"], ["models/tiny", "out.json", "tweets"]])
def test_a_wrong_command_line_says_what_is_right(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"usage: vllm_offline MODEL OUT\.json \[uniform"):
        run(monkeypatch, *arguments)
