"""Another engine's measured requests, run on the twin with uncalibrated times.

Such measurements tell when a request was queued and got its first and last token, not what a step
held: decisions cannot be compared, and nothing can be fitted. Prompts are made up, so no prefix is
shared.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from pagetwin.conformance.fidelity.result import Measure, MeasuredElsewhere
from pagetwin.conformance.fidelity.timing import compare
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.trace import HeaderRecord
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.costs.datasheets import gpu_named
from pagetwin.simulator.costs.known_models import config_named
from pagetwin.simulator.costs.model_shape import dtype_of, shape_of
from pagetwin.simulator.costs.pool_size import num_blocks_in
from pagetwin.simulator.costs.roofline import Roofline
from pagetwin.simulator.recordings.rerun import recorded, rerun
from pagetwin.simulator.recordings.runs import RecordedRequest, RecordedRun
from pagetwin.simulator.recordings.steps import StepTable


class MeasuredRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file: seconds of one monotonic clock; other fields are ignored."""

    request_id: str
    input_toks: int
    output_toks: int
    queued_ts: float
    first_token_ts: float
    last_token_ts: float


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """How the other engine ran, as far as its records tell."""

    name: str
    engine: str
    model: str
    gpu: str
    tensor_parallel: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int | None
    """None: estimated from the GPU's memory."""


def judge_elsewhere(path: Path, setup: Elsewhere) -> MeasuredElsewhere:
    """The file's requests on a twin of that setup. Raises ConfigError, ModelError, TraceError."""
    config = config_named(setup.model)
    gpu, shape, dtype = gpu_named(setup.gpu), shape_of(config), dtype_of(config)
    costs = Roofline(shape=shape, gpu=gpu, dtype=dtype, tensor_parallel=setup.tensor_parallel)
    num_blocks = setup.num_blocks or num_blocks_in(
        gpu, shape, dtype=dtype, tensor_parallel=setup.tensor_parallel
    )
    requests = read_measured(path)
    longest = max(one.input_toks + one.output_toks for one in requests)
    measures = judge_measured(
        requests,
        costs,
        cache=CacheConfig(num_blocks=num_blocks),
        scheduler=SchedulerConfig(
            max_model_len=longest + 1,
            max_num_seqs=setup.max_num_seqs,
            max_num_batched_tokens=setup.max_num_batched_tokens,
        ),
    )
    return MeasuredElsewhere(
        name=setup.name,
        engine=setup.engine,
        costs=costs.label,
        model=Path(setup.model).name,
        tensor_parallel=setup.tensor_parallel,
        max_num_seqs=setup.max_num_seqs,
        max_num_batched_tokens=setup.max_num_batched_tokens,
        num_blocks=num_blocks,
        blocks_are_recorded=setup.num_blocks is not None,
        requests_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        num_requests=len(requests),
        measures=measures,
    )


def read_measured(path: Path) -> list[MeasuredRequest]:
    """JSON Lines, in the order of arrival. Raises TraceError, naming the line, or OSError."""
    requests = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            one = msgspec.json.decode(line, type=MeasuredRequest)
        except msgspec.DecodeError as error:
            raise TraceError(f"{path}:{number}: not a measured request ({error})") from None
        times = (one.queued_ts, one.first_token_ts, one.last_token_ts)
        if one.input_toks < 1 or one.output_toks < 1 or list(times) != sorted(times):
            raise TraceError(
                f"{path}:{number}: lengths below 1, or times that go back, in {one.request_id!r}"
            )
        requests.append(one)
    if not requests:
        raise TraceError(f"{path} is empty; it should hold a request a line")
    return sorted(requests, key=lambda one: one.queued_ts)


def judge_measured(
    requests: list[MeasuredRequest],
    cost_model: CostModel,
    *,
    cache: CacheConfig,
    scheduler: SchedulerConfig,
) -> tuple[Measure, ...]:
    """What the requests saw, and what the twin says they see."""
    run = _run(requests, HeaderRecord(cache=cache, scheduler=scheduler))
    again = {one.request_id: one for one in rerun(run, cost_model).seen}
    both = [one for one in recorded(run) if one.request_id in again]
    return compare(both, [again[one.request_id] for one in both])


def _run(requests: list[MeasuredRequest], header: HeaderRecord) -> RecordedRun:
    made = []
    for number, one in enumerate(requests):
        prompt = np.arange(one.input_toks) + number * header.scheduler.max_model_len
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=one.output_toks)
        request = Request(
            request_id=one.request_id,
            prompt_token_ids=tuple(prompt.tolist()),
            sampling_params=params,
            arrival_s=one.queued_ts,
        )
        made.append(
            RecordedRequest(
                request,
                arrival_s=one.queued_ts,
                submit_s=one.queued_ts,
                due_s=one.queued_ts,
                first_token_s=one.first_token_ts,
                finish_s=one.last_token_ts,
                num_output_tokens=one.output_toks,
            )
        )
    return RecordedRun(
        label="measured",
        header=header,
        requests=tuple(made),
        steps=StepTable.joined([]),
        end_s=max(one.last_token_ts for one in requests),
    )
