"""A compact history gives back every record, and shows where the twin would decide otherwise."""

import lzma
import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.strategies import scenarios
from pagetwin.conformance.twins import judge_scenario
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import StepTimings
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    HistoryWriter,
    PlanRecord,
    PreemptRecord,
    Record,
    RefuseRecord,
    ResultRecord,
    SubmitRecord,
    read_history,
)
from pagetwin.simulator.recordings.columns import packed, packed_times, unpacked, unpacked_times
from pagetwin.simulator.recordings.compact import read_compact
from pagetwin.simulator.recordings.compacting import compacted
from pagetwin.simulator.recordings.expanding import expanded
from pagetwin.simulator.recordings.reading import compact_file, identity, read_records
from pagetwin.simulator.recordings.renaming import PrefixNames
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.token_source import ScriptedTokens


@given(st.lists(st.integers(-(2**62), 2**62)))
def test_columns_come_back(numbers: list[int]) -> None:
    assert unpacked(packed(numbers)) == numbers


@given(st.lists(st.floats(0, 1e6)))
def test_times_come_back_to_a_tenth_of_a_microsecond(seconds: list[float]) -> None:
    assert unpacked_times(packed_times(seconds)) == pytest.approx(seconds, abs=6e-8)


def comparable(record: Record) -> Record:
    """Without what a compact history leaves out."""
    if isinstance(record, PlanRecord):
        return msgspec.structs.replace(record, block_tables={}, schedule_s=0.0, time_s=None)
    if isinstance(record, ResultRecord):
        return msgspec.structs.replace(record, timings=StepTimings(), update_s=0.0, time_s=None)
    if isinstance(record, SubmitRecord | AbortRecord):
        return msgspec.structs.replace(record, time_s=None)
    if isinstance(record, RefuseRecord):
        return msgspec.structs.replace(record, error="")
    return record


def tokenless(record: Record) -> Record:
    """Without the tokens that a compact history renames, too."""
    record = comparable(record)
    if isinstance(record, SubmitRecord):
        request = msgspec.structs.replace(record.request, prompt_token_ids=())
        return msgspec.structs.replace(record, request=request)
    if isinstance(record, PlanRecord):
        bare = [msgspec.structs.replace(one, token_ids=()) for one in record.plan.introduced]
        new = [msgspec.structs.replace(r, prompt_token_ids=()) for r in record.plan.new_requests]
        plan = msgspec.structs.replace(record.plan, introduced=tuple(bare), new_requests=tuple(new))
        return msgspec.structs.replace(record, plan=plan)
    if isinstance(record, ResultRecord):
        return msgspec.structs.replace(record, sampled=dict.fromkeys(record.sampled, 0))
    return record


@given(st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=8))
def test_renamed_sequences_share_the_prefixes_that_they_shared(sequences: list[list[int]]) -> None:
    names = PrefixNames()
    renamed = [names.follow(0, sequence)[1] for sequence in sequences]
    for one, other in combinations(range(len(sequences)), 2):
        assert common(renamed[one], renamed[other]) == common(sequences[one], sequences[other])


def common(one: list[int], other: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_any_history_comes_back_record_by_record(scenario: Scenario) -> None:
    records = judge_scenario(scenario).records
    data = compacted(records, sha256="ab" * 32, num_bytes=1)
    again = list(expanded(read_compact(data, "it"), "it"))
    assert [comparable(record) for record in again] == [comparable(r) for r in records]


def test_forced_preemptions_come_back_and_files_from_before_them_are_read() -> None:
    cache, scheduler = CacheConfig(num_blocks=20), SchedulerConfig(max_model_len=64)
    twin, tokens, history = Replica(cache, scheduler), ScriptedTokens(), HistoryWriter()
    history.write(HeaderRecord(cache=cache, scheduler=scheduler))
    params = SamplingParams(max_tokens=4)
    for name in "ab":
        request = Request(request_id=name, prompt_token_ids=(1, 2), sampling_params=params)
        twin.add_request(request)
        history.write(SubmitRecord(request=request, counters=twin.counters()))
    while twin.has_unfinished_requests():
        plan = twin.schedule()
        assert plan is not None
        history.write(PlanRecord(plan=plan, counters=twin.counters()))
        result = tokens.execute(plan)
        history.write(ResultRecord.of(result, twin.update(plan, result), twin.counters()))
        found = twin.preempt_request("a") if plan.step == 1 else None
        if found is not None:
            record = PreemptRecord(request_id="a", found=found, counters=twin.counters())
            history.write(record)
    records = history.records
    assert [record.found for record in records if isinstance(record, PreemptRecord)] == [True]
    assert twin.counters().preemptions_recompute == 1
    data = compacted(records, sha256="ab" * 32, num_bytes=1)
    content = read_compact(data, "it")
    assert content.preemptions == ("a",)
    assert list(expanded(content, "it")) == records
    fields = msgspec.msgpack.decode(lzma.decompress(data))
    del fields["preemptions"]
    old = lzma.compress(msgspec.msgpack.encode(fields))
    assert read_compact(old, "it").preemptions == ()


Write = Callable[..., Path]


def test_a_file_becomes_small_and_remembers_what_it_was(
    write_history: Write, tmp_path: Path
) -> None:
    plain = write_history(count=100)
    compact = tmp_path / "it.compact.xz"
    compact.write_bytes(compact_file(plain))
    assert compact.stat().st_size < plain.stat().st_size / 20
    assert identity(compact) == identity(plain)
    assert identity(plain).num_bytes == plain.stat().st_size
    before, after = list(read_history(plain)), list(read_records(compact))
    assert [tokenless(record) for record in after] == [tokenless(r) for r in before]
    times = [r.time_s for r in before if isinstance(r, ResultRecord)]
    assert [r.time_s for r in after if isinstance(r, ResultRecord)] == pytest.approx(
        times, abs=1e-6
    )


def test_a_plain_history_is_read_through_xz(write_history: Write, tmp_path: Path) -> None:
    plain = write_history()
    small = tmp_path / "it.jsonl.xz"
    small.write_bytes(lzma.compress(plain.read_bytes()))
    assert list(read_history(small)) == list(read_history(plain))
    assert identity(small) == identity(plain)
    small.write_bytes(lzma.compress(plain.read_bytes())[:-100])
    with pytest.raises(TraceError, match=r"it\.jsonl\.xz.*damaged or cut"):
        list(read_history(small))


def test_one_decision_changed_is_found_where_it_happened(write_history: Write) -> None:
    records = list(read_history(write_history()))
    places = [i for i, r in enumerate(records) if isinstance(r, PlanRecord)]
    place = random.Random(0).choice(places[5:])
    record = records[place]
    assert isinstance(record, PlanRecord)
    row, *others = record.plan.scheduled
    changed = msgspec.structs.replace(row, num_scheduled_tokens=row.num_scheduled_tokens + 1)
    plan = msgspec.structs.replace(record.plan, scheduled=(changed, *others))
    records[place] = msgspec.structs.replace(record, plan=plan)
    data = compacted(records, sha256="ab" * 32, num_bytes=1)
    with pytest.raises(TraceError, match=rf"event {place} \(PlanRecord\) the twin decided other"):
        list(expanded(read_compact(data, "it"), "it"))


def test_bad_files_are_explained(write_history: Write, tmp_path: Path) -> None:
    bad = tmp_path / "bad.compact.xz"
    bad.write_bytes(b"not xz")
    with pytest.raises(TraceError, match=r"bad\.compact\.xz: not a compact history"):
        list(read_records(bad))
    bad.write_bytes(lzma.compress(b"\x80"))
    with pytest.raises(TraceError, match=r"not a compact history"):
        list(read_records(bad))
    headless = tmp_path / "headless.jsonl"
    with HistoryWriter(headless) as writer:
        writer.write(list(read_history(write_history()))[1])
    with pytest.raises(TraceError, match="header"):
        compact_file(headless)
