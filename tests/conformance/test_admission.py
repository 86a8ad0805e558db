"""Refusals: exactly what can never run, judged from the history alone."""

from typing import Any

import msgspec
import pytest

from pagetwin.conformance.checkers.all import check_all
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import Counters
from pagetwin.engine.trace import HeaderRecord, Record, RefuseRecord, SubmitRecord

CACHE = CacheConfig(num_blocks=5, block_size=2, watermark_blocks=1)
LIMITS = SchedulerConfig(max_model_len=10, max_num_seqs=3, max_num_batched_tokens=8)
ID = "sched.admission-feasible"
FEASIBLE: tuple[dict[str, Any], ...] = (
    {"prompt_token_ids": (0,)},
    {"prompt_token_ids": (0,) * 7},
    {"prompt_token_ids": (0,), "sampling_params": SamplingParams(n=3)},
    {
        "prompt_token_ids": (0,),
        "beam_search": BeamSearchParams(beam_width=3),
        "sampling_params": SamplingParams(max_tokens=1),
    },
)
INFEASIBLE: tuple[dict[str, Any], ...] = (
    {"prompt_token_ids": ()},
    {"prompt_token_ids": (0,) * 8},
    {"prompt_token_ids": (0,) * 10},
    {"prompt_token_ids": (0,), "sampling_params": SamplingParams(n=4)},
    {
        "prompt_token_ids": (0,),
        "beam_search": BeamSearchParams(beam_width=3),
        "sampling_params": SamplingParams(max_tokens=3),
    },
)


def verdicts(fields: dict[str, Any], *, refused: bool) -> list[str]:
    request = Request(request_id="r", **fields)
    counters = Counters(num_free_blocks=4, num_waiting=1)
    records: list[Record] = [HeaderRecord(cache=CACHE, scheduler=LIMITS)]
    if refused:
        records.append(RefuseRecord(request=request, error="no"))
    else:
        records.append(SubmitRecord(request=request, counters=counters))
    return [one.property_id for one in check_all(records)]


@pytest.mark.parametrize("fields", FEASIBLE)
def test_what_can_run_must_be_accepted(fields: dict[str, Any]) -> None:
    assert verdicts(fields, refused=False) == []
    assert verdicts(fields, refused=True) == [ID]


@pytest.mark.parametrize("fields", INFEASIBLE)
def test_what_can_never_run_must_be_refused(fields: dict[str, Any]) -> None:
    assert verdicts(fields, refused=True) == []
    assert verdicts(fields, refused=False) == [ID]


def test_an_id_that_lives_may_be_refused() -> None:
    request = Request(request_id="r", prompt_token_ids=(0,))
    again = msgspec.structs.replace(request, prompt_token_ids=(1,))
    records: list[Record] = [
        HeaderRecord(cache=CACHE, scheduler=LIMITS),
        SubmitRecord(request=request, counters=Counters(num_free_blocks=4, num_waiting=1)),
        RefuseRecord(request=again, error="in use"),
    ]
    assert not check_all(records)
