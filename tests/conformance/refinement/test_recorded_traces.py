"""Traces of other engines, recorded once, are allowed; corrupted, they are not."""

import gzip
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pagetwin.conformance.refinement.checker import refine
from pagetwin.conformance.refinement.specification import HF_FIFO, VLLM_V1_FCFS, specification_of
from pagetwin.engine.trace import HeaderRecord, PlanRecord, Record, SubmitRecord, read_history

TRACES = Path(__file__).parent / "traces"
SPECIFICATIONS = {
    "vllm-0.32.0-cpu": VLLM_V1_FCFS,
    # Some of its requests have two samples, each scheduled as a request of its own.
    "vllm-0.32.0-cpu-samples": VLLM_V1_FCFS,
    "transformers-5.24.0": HF_FIFO,
    # It preempts for requests that the step leaves out, which want blocks, too; and there is one
    # that has found its prefix, holds its blocks, and has never run.
    "transformers-5.24.0-left-out": HF_FIFO,
    "transformers-5.24.0-prefix-held": HF_FIFO,
}

Recorded = Callable[[str], list[Record]]


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    def read(name: str) -> list[Record]:
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(gzip.decompress((TRACES / f"{name}.jsonl.gz").read_bytes()))
        return list(read_history(path))

    return read


@pytest.mark.parametrize("name", list(SPECIFICATIONS))
def test_a_recorded_trace_is_allowed_by_its_engines_policy(name: str, recorded: Recorded) -> None:
    records = recorded(name)
    header = records[0]
    assert isinstance(header, HeaderRecord)
    assert specification_of(header.engine) == SPECIFICATIONS[name]
    seen = refine(records, SPECIFICATIONS[name])
    assert seen.violations == []
    assert min(seen.goals[one] for one in ("preemptions", "returns", "hits", "shared blocks")) > 0


def test_samples_that_an_engine_forgets_are_missed(recorded: Recorded) -> None:
    records = recorded("vllm-0.32.0-cpu-samples")
    assert refine(records, VLLM_V1_FCFS).goals["further samples"] > 0
    alone = [
        msgspec.structs.replace(
            record,
            request=msgspec.structs.replace(
                record.request,
                sampling_params=msgspec.structs.replace(record.request.sampling_params, n=1),
            ),
        )
        if isinstance(record, SubmitRecord)
        else record
        for record in records
    ]
    messages = [one.message for one in refine(alone, VLLM_V1_FCFS).violations]
    assert "a sequence is scheduled that does not live" in messages


@pytest.mark.parametrize("name", list(SPECIFICATIONS))
def test_every_table_entry_that_is_read_matters(name: str, recorded: Recorded) -> None:
    """A block of one running sequence in the place of another's, in each plan where two run."""
    records = recorded(name)
    caught = tried = 0
    for index, record in enumerate(records):
        if not isinstance(record, PlanRecord) or tried == 20:
            continue
        readers = [one.seq_id for one in record.plan.scheduled if one.num_computed_tokens]
        tables = record.block_tables
        if len(readers) < 2 or tables[readers[0]][0] == tables[readers[1]][0]:
            continue
        tried += 1
        first, second = readers[:2]
        wrong = tables | {second: (tables[first][0], *tables[second][1:])}
        changed = list(records)
        changed[index] = msgspec.structs.replace(record, block_tables=wrong)
        caught += bool(refine(changed, SPECIFICATIONS[name]).violations)
    assert tried == caught == 20
