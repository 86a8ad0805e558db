"""Runs a recorded run's requests on the twin, in virtual time, under the same knobs or others."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import msgspec
import simpy

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.simulator.clock import to_seconds, to_ticks
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.process import FastForwardProcess
from pagetwin.simulator.occasions import At
from pagetwin.simulator.recordings.runs import RecordedRequest, RecordedRun
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.timings import RequestTimings
from pagetwin.simulator.token_source import ScriptedTokens


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one request saw, in seconds from the run's start."""

    request_id: str
    arrival_s: float
    first_token_s: float
    finish_s: float
    num_output_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> float:
        return self.finish_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None if there was no other."""
        if self.num_output_tokens < 2:
            return None
        return (self.finish_s - self.first_token_s) / (self.num_output_tokens - 1)


@dataclass(frozen=True)
class Rerun:
    """What the twin made of a run."""

    seen: tuple[Seen, ...]
    """In the order of submission; those that got no token left out."""
    refused: dict[str, str]
    num_preemptions: int


def recorded(run: RecordedRun) -> tuple[Seen, ...]:
    """What the requests of a run really saw, those left out that ended without a token."""
    return tuple(
        Seen(
            request_id=one.request.request_id,
            arrival_s=one.arrival_s - run.start_s,
            first_token_s=one.first_token_s - run.start_s,
            finish_s=one.finish_s - run.start_s,
            num_output_tokens=one.num_output_tokens,
        )
        for one in run.requests
        if one.first_token_s is not None and one.finish_s is not None
    )


def rerun(
    run: RecordedRun,
    cost_model: CostModel,
    *,
    cache: CacheConfig | None = None,
    scheduler: SchedulerConfig | None = None,
) -> Rerun:
    """The run's requests, at their arrivals, with the outputs' lengths that they had.

    Requests that were aborted end where they ended. Tokens are made up, so that outputs share no
    prefix with later prompts.
    """
    cache, scheduler = cache or run.header.cache, scheduler or run.header.scheduler
    env = simpy.Environment()
    watch = _Watch({one.request.request_id: one for one in run.requests}, run.start_s)
    replica = FastForwardProcess(
        env,
        Replica(cache, scheduler),
        cost_model,
        ScriptedTokens(max_model_len=scheduler.max_model_len),
        on_first_token=watch.first_token,
        on_finish=watch.finish,
    )
    env.process(_hand_in(env, replica, _due(run)))
    env.run()
    counters = replica.scheduler.counters()
    order = {one.request.request_id: number for number, one in enumerate(run.requests)}
    return Rerun(
        seen=tuple(sorted(watch.seen, key=lambda one: order[one.request_id])),
        refused=dict(replica.times.refused),
        num_preemptions=counters.preemptions_recompute + counters.preemptions_swap,
    )


class _Watch:
    """Notes first tokens and ends."""

    def __init__(self, requests: dict[str, RecordedRequest], start_s: float) -> None:
        self.seen: list[Seen] = []
        self._requests = requests
        self._start_s = start_s
        self._first: dict[str, int] = {}

    def first_token(self, request_id: str, ticks: int) -> None:
        self._first[request_id] = ticks

    def finish(self, timings: RequestTimings) -> None:
        ticks = self._first.pop(timings.request_id, None)
        if ticks is None or timings.finish_ticks is None:
            return
        one = self._requests[timings.request_id]
        self.seen.append(
            Seen(
                request_id=timings.request_id,
                arrival_s=one.arrival_s - self._start_s,
                first_token_s=to_seconds(ticks),
                finish_s=to_seconds(timings.finish_ticks),
                num_output_tokens=timings.num_output_tokens,
            )
        )


def _due(run: RecordedRun) -> list[tuple[int, Request]]:
    """(tick, request) in order; requests without a token are not worth a step."""
    some = [one for one in run.requests if one.num_output_tokens > 0]
    some.sort(key=lambda one: one.due_s)
    return [(max(0, to_ticks(one.due_s - run.start_s)), _with_length(one)) for one in some]


def _with_length(one: RecordedRequest) -> Request:
    """The request, ending where it ended."""
    request = one.request
    length = -(-one.num_output_tokens // request.num_samples)
    params = msgspec.structs.replace(
        request.sampling_params,
        max_tokens=length,
        min_tokens=0,
        ignore_eos=True,
        stop=(),
        stop_token_ids=(),
    )
    return msgspec.structs.replace(request, sampling_params=params, eos_token_ids=())


def _hand_in(
    env: simpy.Environment, replica: FastForwardProcess, due: Sequence[tuple[int, Request]]
) -> Generator[simpy.Event, None, None]:
    for ticks, request in due:
        if ticks > env.now:
            yield At(env, ticks)
        replica.submit(request)
