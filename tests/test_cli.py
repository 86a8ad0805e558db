"""The command line: what it answers, and that whatever is wrong is one line and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from pagetwin.cli import main


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command line that must be refused."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("pagetwin: ")
    return lines[0]


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("demo", "bench", "profile"):
        assert f"  {command} " in out


def test_no_command_is_a_question_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: pagetwin" in capsys.readouterr().out


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pagetwin ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["demo", "--bogus"], "--bogus"),
        (["--bogus"], "--bogus"),
        (["bogus"], "bogus"),
        (["demo", "--requests", "many"], "--requests"),
        (["demo", "--requests"], "--requests"),
        (["demo", "--requests", "-3"], "--requests"),
        (["demo", "--requests", "0"], "--requests"),
        (["demo", "left-over"], "left-over"),
        (["bench", "bogus"], "bogus"),
        (["bench", "offline"], "--model"),
        (["bench", "kernels", "--bogus"], "--bogus"),
        (["profile"], "--model"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_what_is_wrong(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refusal(arguments, capsys)


def test_a_missing_trace_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, trace = tmp_path / "out", tmp_path / "none.csv"
    assert str(trace) in refusal(["demo", "--trace", str(trace), "--out", str(out)], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_trace_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "cut.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:1"
    )
    line = refusal(["demo", "--trace", str(trace), "--out", str(tmp_path / "out")], capsys)
    assert f"{trace}:3" in line
    assert list(tmp_path.iterdir()) == [trace]


def test_a_short_trace_is_refused_with_both_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "short.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n")
    line = refusal(["demo", "--trace", str(trace), "--requests", "20"], capsys)
    assert "1, asked for 20" in line


def test_a_missing_model_folder_is_named_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "no-model"
    line = refusal(["demo", "--model", str(model), "--out", str(tmp_path / "out")], capsys)
    assert str(model) in line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_architecture_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(
        '{"architectures": ["AbacusForCausalLM"], "dtype": "float32"}'
    )
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    line = refusal(["demo", "--model", str(model), "--out", str(tmp_path / "out")], capsys)
    assert "AbacusForCausalLM" in line


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    assert str(out) in refusal(["demo", "--out", str(out)], capsys)
    assert out.read_text() == "mine"


def test_the_module_runs_as_a_program_and_help_loads_no_torch() -> None:
    program = (
        "import sys, pagetwin.cli\n"
        "commands = (['demo'], ['bench', 'offline'], ['bench', 'kernels'], ['profile'])\n"
        "code = max(pagetwin.cli.main([*command, '--help']) for command in commands)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'jinja2', 'simpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "pagetwin", "demo", "--bogus"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
