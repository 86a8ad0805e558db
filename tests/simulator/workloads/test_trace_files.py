"""Traces are read exactly, and damage is told with file and line."""

import json
from pathlib import Path

import msgspec
import pytest

from pagetwin.engine.errors import TraceError
from pagetwin.simulator.workloads.columns import Columns
from pagetwin.simulator.workloads.trace_files import TraceEntry, read_trace, synthetic_trace_path

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


def test_columns_are_found_by_the_names_that_tools_use_or_as_told(tmp_path: Path) -> None:
    vidur = write(tmp_path, "v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n7.5,3,4\n")
    (entry,) = read_trace(vidur)
    assert (entry.arrival_s, entry.prompt_tokens, entry.output_tokens) == (0.0, 3, 4)
    rows = (
        '{"at": 1000, "in": 5, "out": 6, "who": "a"}\n{"at": 1500, "in": 7, "out": 8, "who": 2}\n'
    )
    columns = Columns(arrival="at", prompt="in", output="out", session="who", unit="ms")
    first, second = read_trace(write(tmp_path, "own.jsonl", rows), columns)
    assert (first.session, second.session) == ("a", "2")
    assert (second.arrival_s, second.prompt_tokens, second.output_tokens) == (0.5, 7, 8)
    with pytest.raises(TraceError, match="lacks age, its session column; it has at, in, out, who"):
        next(read_trace(tmp_path / "own.jsonl", msgspec.structs.replace(columns, session="age")))


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("t.csv", "", "", "no entries"),
        ("t.csv", "TIMESTAMP,ContextTokens\na,1\n", ":1", "lacks GeneratedTokens"),
        (
            "t.csv",
            "when,prompt_tokens,output_tokens\n1,1,1\n",
            ":1",
            "trace:file=FILE,arrival=COLUMN",
        ),
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
        ("t.jsonl", json_line(prompt=1.5), ":1", "1.5 is not a whole number"),  # type: ignore[arg-type]
        ("t.jsonl", json_line().replace("[0, 1]", '"x"'), ":1", "not a list of numbers"),
        ("t.jsonl", json_line() + '{"timestamp": 1, "hash_ids": []}', ":2", "lacks input_length"),
        ("t.jsonl", "[1]\n", ":1", "not a JSON object"),
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


def test_the_shipped_trace_is_read() -> None:
    assert len(list(read_trace(synthetic_trace_path()))) == 200
