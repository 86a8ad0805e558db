"""Traces are read exactly, and damage is told with file and line."""

import json
from pathlib import Path

import pytest

from pagetwin.engine.errors import ConfigError, TraceError
from pagetwin.simulator.workload import (
    TraceEntry,
    read_trace,
    synthetic_trace_path,
    trace_requests,
)

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:15:46.6805900,374,44\n"


def write(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def json_line(timestamp: float = 0, prompt: int = 600, output: int = 9, hashes: int = 2) -> str:
    fields = {"timestamp": timestamp, "input_length": prompt, "output_length": output}
    return json.dumps(fields | {"hash_ids": list(range(hashes))}) + "\n"


def test_a_csv_trace_is_read_with_times_from_its_first_row(tmp_path: Path) -> None:
    later = "2023-11-16 18:16:47.1805901,2,7\n"
    path = write(tmp_path, "t.csv", "\ufeff" + HEADER + ROW + later)
    first, second = read_trace(path)
    assert first == TraceEntry(arrival_s=0.0, prompt_tokens=374, output_tokens=44)
    assert (second.prompt_tokens, second.output_tokens) == (2, 7)
    assert second.arrival_s == pytest.approx(60.5000001, abs=1e-6)


def test_a_json_lines_trace_is_read_with_its_hashes(tmp_path: Path) -> None:
    path = write(tmp_path, "t.jsonl", json_line(500) + json_line(2000))
    first, second = read_trace(path)
    assert first == TraceEntry(
        arrival_s=0.0, prompt_tokens=600, output_tokens=9, prefix_hashes=(0, 1)
    )
    assert second.arrival_s == 1.5


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("t.csv", "", ":1", "header lacks TIMESTAMP"),
        ("t.csv", "TIMESTAMP,ContextTokens\n", ":1", "lacks GeneratedTokens"),
        ("t.csv", HEADER, "", "no entries"),
        ("t.csv", HEADER + ROW + "2023-11-16 18:15:50.99", ":3", "damaged or cut"),
        ("t.csv", HEADER + "\n" + ROW, ":2", "0 fields"),
        ("t.csv", HEADER + ROW.replace("374", "-3"), ":2", "-3 prompt tokens"),
        ("t.csv", HEADER + ROW.replace("44\n", "0\n"), ":2", "0 output tokens"),
        ("t.csv", HEADER + ROW.replace("374", "nan"), ":2", "'nan' is not a whole number"),
        ("t.csv", HEADER + ROW.replace("374", "3.5"), ":2", "'3.5' is not a whole number"),
        ("t.csv", HEADER + ROW.replace("2023", "year"), ":2", "not a time"),
        ("t.csv", HEADER + ROW.replace("6805900", "x"), ":2", "not a time"),
        ("t.csv", HEADER + ROW + ROW.replace("46", "45"), ":3", "goes back"),
        ("t.csv", b"\xff\xfe\x00", "", "not CSV text"),
        ("t.jsonl", "", "", "no entries"),
        ("t.jsonl", json_line() + json_line()[:40], ":2", "damaged or cut"),
        ("t.jsonl", '{"timestamp": 0}\n', ":1", "input_length"),
        ("t.jsonl", json_line(prompt=-5), ":1", "-5 prompt tokens"),
        ("t.jsonl", json_line(output=0), ":1", "0 output tokens"),
        ("t.jsonl", json_line(timestamp=float("nan")), ":1", "damaged or cut"),
        ("t.jsonl", json_line(hashes=3), ":1", "there must be 2"),
        ("t.jsonl", json_line(9) + json_line(8), ":2", "goes back"),
        ("t.txt", "", "", "suffix"),
    ],
)
def test_damage_is_told_with_file_and_line(
    tmp_path: Path, name: str, text: str | bytes, line: str, message: str
) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(TraceError) as caught:
        list(read_trace(path))
    assert str(caught.value).startswith(f"{path}{line}: ")
    assert message in str(caught.value)


def test_a_missing_file_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        list(read_trace(tmp_path / "none.csv"))


def test_reading_is_lazy_so_that_damage_at_the_end_costs_no_start(tmp_path: Path) -> None:
    entries = read_trace(write(tmp_path, "t.csv", HEADER + ROW + "damage\n"))
    assert next(entries).prompt_tokens == 374
    with pytest.raises(TraceError, match=":3"):
        next(entries)


def test_equal_hashes_become_equal_tokens() -> None:
    entries = [
        TraceEntry(arrival_s=0.0, prompt_tokens=1100, output_tokens=5, prefix_hashes=hashes)
        for hashes in ((1, 2, 3), (1, 2, 4))
    ]
    first, second = trace_requests(entries, max_model_len=2000, vocab_size=32000)
    assert first.prompt_token_ids[:1024] == second.prompt_token_ids[:1024]
    assert first.prompt_token_ids[1024:] != second.prompt_token_ids[1024:]
    assert len(first.prompt_token_ids) == 1100
    assert all(0 <= token_id < 32000 for token_id in first.prompt_token_ids)


def test_prompts_without_hashes_share_nothing_and_lengths_fit_the_model() -> None:
    entries = [TraceEntry(arrival_s=1.0, prompt_tokens=n, output_tokens=50) for n in (90, 500)]
    first, second = trace_requests(entries, max_model_len=100, vocab_size=32000)
    assert first.prompt_token_ids[:4] != second.prompt_token_ids[:4]
    assert (len(first.prompt_token_ids), first.sampling_params.max_tokens) == (90, 10)
    assert (len(second.prompt_token_ids), second.sampling_params.max_tokens) == (99, 1)
    assert (first.arrival_s, first.sampling_params.ignore_eos) == (1.0, True)


def test_a_model_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_model_len=1"):
        next(trace_requests([], max_model_len=1, vocab_size=10))


def test_the_shipped_trace_is_read() -> None:
    assert len(list(read_trace(synthetic_trace_path()))) == 200
