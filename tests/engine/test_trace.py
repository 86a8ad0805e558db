"""Histories: what is written is read back, and damage is named by file and line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.core import EngineCore
from pagetwin.engine.errors import RequestError, TraceError
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.request import Request
from pagetwin.engine.trace import HistoryWriter, Record, read_history


@pytest.fixture
def recorded(tmp_path: Path, make_request: Callable[..., Request]) -> tuple[Path, list[Record]]:
    """A history file with every kind of record, and the same records kept in memory."""
    path = tmp_path / "history.jsonl"
    config = EngineConfig(
        cache=CacheConfig(num_blocks=9, block_size=4),
        scheduler=SchedulerConfig(max_model_len=24, max_num_seqs=3),
    )
    with HistoryWriter(path, keep=True, with_block_tables=True) as history:
        core = EngineCore(config, FingerprintExecutor(config.cache), history=history)
        core.add_request(make_request("a", 6, n=2, temperature=1.0))
        core.add_request(make_request("b", 9, cache_salt="tenant", stop=["x"], seed=3))
        with pytest.raises(RequestError):
            core.add_request(make_request("too long", 99))
        core.step()
        core.reset_prefix_cache()
        core.abort_request("b")
        while core.has_unfinished_requests():
            core.step()
    return path, history.records


def test_a_history_is_read_back_as_it_was_written(recorded: tuple[Path, list[Record]]) -> None:
    path, records = recorded
    assert list(read_history(path)) == records
    kinds = {type(record).__name__ for record in records}
    assert kinds == {
        "HeaderRecord",
        "SubmitRecord",
        "RefuseRecord",
        "AbortRecord",
        "ResetRecord",
        "PlanRecord",
        "ResultRecord",
    }


def _damage(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_a_history_from_before_the_knob_ran_without_waiting_for_prefixes(
    recorded: tuple[Path, list[Record]],
) -> None:
    path, records = recorded
    path.write_bytes(path.read_bytes().replace(b',"wait_for_prefix":false', b"", 1))
    assert b"wait_for_prefix" not in path.read_bytes()
    assert next(read_history(path)) == records[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:20]], r"history\.jsonl:\d+: not a history record"),
        (lambda lines: lines[1:], r":1: the header must be the first line"),
        (lambda lines: [lines[0], *lines], r":2: the header must be the first line, and only it"),
        (
            lambda lines: [lines[0].replace(b"history/1", b"history/9"), *lines[1:]],
            r":1: schema 'pagetwin\.history/9', this version reads 'pagetwin\.history/1'",
        ),
    ],
)
def test_a_damaged_history_is_refused_with_file_and_line(
    recorded: tuple[Path, list[Record]],
    change: Callable[[list[bytes]], list[bytes]],
    message: str,
) -> None:
    path, _ = recorded
    _damage(path, change)
    with pytest.raises(TraceError, match=message):
        list(read_history(path))
