"""The lab: one small workload on the engine's core, again and again, each time with a fault."""

from dataclasses import dataclass, field

import msgspec

from pagetwin.conformance.faults.fault import Fault
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.core import CompletedStep, EngineCore
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import Counters
from pagetwin.engine.trace import HistoryWriter, Record

VOCAB_SIZE = 16
MOST_STEPS = 2000
"""More than any run of the workload needs; a run that takes more hangs."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration in which memory is short, and the requests that compete for it."""

    name: str
    cache: CacheConfig
    scheduler: SchedulerConfig
    requests: tuple[tuple[int, Request], ...]
    """(step before which it is submitted, request)."""


@dataclass
class Outcome:
    """What a run left behind."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    """By sequence id."""
    ends: dict[str, str] = field(default_factory=dict)
    """Finish reason by sequence id; of a request that failed as a whole, of its sample 0."""
    errors: dict[str, str] = field(default_factory=dict)
    """What was said to each request that ended with an error."""
    steps: int = 0
    records: list[Record] = field(default_factory=list)
    before: Counters | None = None
    after: Counters | None = None
    rows_left: int = 0
    """Rows and requests that the executor still keeps."""
    broken: list[str] = field(default_factory=list)
    """What must never happen: a recount that fails, a run that does not end."""


def run(setting: Setting, fault: Fault | None = None, *, again: bool = True) -> Outcome:
    """Runs the workload under the fault; with `again`, a second time, on the same engine, with
    the fault gone: what it left in the cache shows then."""
    outcome = Outcome()
    fault = fault or Fault()
    executor = FingerprintExecutor(setting.cache, vocab_size=VOCAB_SIZE)
    config = EngineConfig(cache=setting.cache, scheduler=setting.scheduler)
    history = HistoryWriter(keep=True, with_block_tables=True)
    core = EngineCore(config, fault.wrap(executor), history=history, clock=fault.clock())
    outcome.before = core.scheduler.counters()
    _drive(core, setting.requests, fault, outcome)
    if again:
        fault.is_over = True
        renamed = tuple(
            (step, msgspec.structs.replace(request, request_id=f"{request.request_id}-again"))
            for step, request in setting.requests
        )
        _drive(core, renamed, fault, outcome)
    core.reset_prefix_cache()
    outcome.after = core.scheduler.counters()
    _flush(core)
    outcome.rows_left = len(executor._rows) + len(executor._requests)
    outcome.records = history.records
    return outcome


def _drive(
    core: EngineCore, requests: tuple[tuple[int, Request], ...], fault: Fault, outcome: Outcome
) -> None:
    waiting, number = sorted(requests, key=lambda one: one[0]), 0
    while waiting or core.has_unfinished_requests():
        while waiting and waiting[0][0] <= number:
            core.add_request(waiting.pop(0)[1])
        with fault.around_step(core, number):
            for completed in fault.step(core):
                _note(completed, outcome)
        _recount(core, outcome, f"after step {number}")
        number += 1
        if number > MOST_STEPS:
            outcome.broken.append(f"it does not end: {number} steps and requests live")
            return
    outcome.steps = max(outcome.steps, number)


def _note(completed: CompletedStep, outcome: Outcome) -> None:
    for request_id in completed.failed:
        outcome.ends[sequence_id(request_id, 0)] = "error"
        outcome.errors[request_id] = completed.error
    over = outcome.ends
    for seq_id, token in completed.result.sampled.items():
        if seq_id not in over:
            outcome.tokens.setdefault(seq_id, []).append(token)
    for end in completed.update.finished:
        over[end.seq_id] = end.reason
        if end.reason == "error":
            outcome.errors[end.seq_id.rpartition("/")[0]] = str(end.stop_reason)


def _recount(core: EngineCore, outcome: Outcome, when: str) -> None:
    try:
        core.scheduler.check_invariants()
    except AssertionError as error:
        outcome.broken.append(f"{when} the books are wrong: {error}")


def _flush(core: EngineCore) -> None:
    """One request more, so that the executor is told what to forget; then it may keep that one."""
    core.add_request(
        Request(
            request_id="flush",
            prompt_token_ids=(0,),
            sampling_params=SamplingParams(max_tokens=1, ignore_eos=True),
        )
    )
    while core.has_unfinished_requests():
        core.step()


def settings() -> list[Setting]:
    """Both preemption modes, synchronous or not; four requests that share prefixes, one of two
    samples, in a pool that holds two of them."""
    made = []
    for mode in ("recompute", "swap"):
        for asynchronous in (False, True):
            cache = CacheConfig(
                num_blocks=9, block_size=3, num_host_blocks=8 if mode == "swap" else 0
            )
            limits = SchedulerConfig(
                max_model_len=20,
                max_num_seqs=5,
                max_num_batched_tokens=8,
                preemption_mode="swap" if mode == "swap" else "recompute",
                async_scheduling=asynchronous,
            )
            name = f"{mode}{'-async' if asynchronous else ''}"
            made.append(Setting(name=name, cache=cache, scheduler=limits, requests=_requests()))
    return made


def _requests() -> tuple[tuple[int, Request], ...]:
    shared = (1, 2, 3, 4, 5, 6, 7)
    specs = [
        (0, "a", (*shared, 8), 1, 9),
        (0, "b", (*shared, 9), 2, 6),
        (1, "c", shared[:4], 1, 12),
        (3, "d", (*shared, 1, 1), 1, 7),
        (9, "e", (*shared, 8), 1, 5),
    ]
    return tuple(
        (
            step,
            Request(
                request_id=name,
                prompt_token_ids=prompt,
                sampling_params=SamplingParams(n=samples, max_tokens=longest, ignore_eos=True),
                arrival_s=float(index),
            ),
        )
        for index, (step, name, prompt, samples, longest) in enumerate(specs)
    )
