"""Decides how fast the simulator is called: one replica of a chat server, from arrivals to ends.

Each measurement runs in a process of its own, which draws the requests, simulates them and keeps
a histogram of what they saw, so that start-up and memory are those of the whole job.
"""

import json
import random
import resource
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, Self

import msgspec

from pagetwin.conformance.environment import Commit, commit, machine, versions
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.simulator.clock import TICKS_PER_S
from pagetwin.simulator.cost_model import REFERENCE_COSTS
from pagetwin.simulator.one_replica import simulate_replica
from pagetwin.simulator.timings import RequestTimings

SCHEMA = "pagetwin.bench.simulator/1"
PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS_PER_S = 512, 128, 8.0
NUM_REQUESTS, NUM_REQUESTS_LONG = 20_000, 1_000_000
NUM_STARTUPS = 5
SEED = 0
CACHE = CacheConfig(num_blocks=20_000)
"""About what 80 GB leave beside 8 billion parameters: 320,000 tokens of 131 kB."""
SCHEDULER = SchedulerConfig(max_model_len=8192)
BIN_TICKS = TICKS_PER_S // 10_000

Mode = Literal["fast_forward", "stepping"]


class SimulatorRun(msgspec.Struct, frozen=True, kw_only=True):
    """One process: what it cost, and what it found."""

    mode: Mode
    num_requests: int
    cpu_s: float
    """Of drawing, simulating and counting, without start-up."""
    peak_rss_mb: float
    """Of the whole process."""
    num_steps: int
    virtual_s: float
    latency_ms: dict[str, float]
    """Percentiles of TTFT and E2E, to 0.1 ms."""
    timings_crc32: int
    """Over the times of every request, as they end: equal results, equal numbers."""

    @property
    def requests_per_cpu_s(self) -> float:
        return self.num_requests / self.cpu_s


class SimulatorReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `pagetwin bench simulator` found."""

    schema: str = SCHEMA
    fast_forward_requests_per_cpu_s: float
    stepping_requests_per_cpu_s: float
    startup_s: float
    """Wall time of a process that simulates one request, the interpreter's start included; the
    fastest of several."""
    peak_rss_mb: float
    """Of the fast-forward run of `num_requests`."""
    peak_rss_long_mb: float | None
    """Of that of `num_requests_long`, where one was made."""
    num_requests: int
    num_requests_long: int
    workload: str
    runs: tuple[SimulatorRun, ...]
    startups_s: tuple[float, ...]
    version: str
    commit: Commit | None
    machine: dict[str, str]
    versions: dict[str, str]

    @classmethod
    def of(cls, runs: list[SimulatorRun], startups_s: list[float]) -> Self:
        """The report of those runs, made here and now; of each mode the fastest counts."""
        least = min(run.num_requests for run in runs)
        long = [run for run in runs if run.num_requests > least]
        short = [run for run in runs if run.num_requests == least]
        rates = {run.mode: 0.0 for run in short}
        for run in short:
            rates[run.mode] = max(rates[run.mode], run.requests_per_cpu_s)
        return cls(
            fast_forward_requests_per_cpu_s=round(rates["fast_forward"], 1),
            stepping_requests_per_cpu_s=round(rates["stepping"], 1),
            startup_s=round(min(startups_s), 3),
            peak_rss_mb=max(run.peak_rss_mb for run in short if run.mode == "fast_forward"),
            peak_rss_long_mb=max((run.peak_rss_mb for run in long), default=None),
            num_requests=least,
            num_requests_long=max((run.num_requests for run in long), default=0),
            workload=(
                f"{PROMPT_TOKENS} prompt and {OUTPUT_TOKENS} output tokens, "
                f"Poisson {REQUESTS_PER_S:g}/s, seed {SEED}"
            ),
            runs=tuple(runs),
            startups_s=tuple(round(seconds, 4) for seconds in startups_s),
            version=versions()["pagetwin"],
            commit=commit(("engine", "simulator", "conformance")),
            machine=machine(),
            versions=versions(),
        )


def chat_requests(count: int) -> Iterator[Request]:
    """The workload: contents that nobody else has, which a salt says as well as tokens would."""
    rng = random.Random(SEED)
    prompt = tuple(range(PROMPT_TOKENS))
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    now_s = 0.0
    for number in range(count):
        now_s += rng.expovariate(REQUESTS_PER_S)
        name = f"r{number:07}"
        yield Request(
            request_id=name,
            prompt_token_ids=prompt,
            sampling_params=params,
            arrival_s=now_s,
            cache_salt=name,
        )


class Histogram:
    """What requests saw, to a tenth of a millisecond, in memory that does not grow with them."""

    def __init__(self) -> None:
        self.ttft: Counter[int] = Counter()
        self.e2e: Counter[int] = Counter()
        self.crc32 = 0

    def add(self, timings: RequestTimings) -> None:
        first, finish = timings.first_token_ticks, timings.finish_ticks
        assert first is not None
        assert finish is not None
        self.ttft[(first - timings.arrival_ticks) // BIN_TICKS] += 1
        self.e2e[(finish - timings.arrival_ticks) // BIN_TICKS] += 1
        self.crc32 = zlib.crc32(b"%d %d" % (first, finish), self.crc32)

    def percentiles_ms(self) -> dict[str, float]:
        named = {"ttft": self.ttft, "e2e": self.e2e}
        return {
            f"{name}_p{percent}": _percentile(bins, percent) * BIN_TICKS * 1000 / TICKS_PER_S
            for name, bins in named.items()
            for percent in (50, 95, 99)
        }


def simulate_here(mode: Mode, num_requests: int) -> SimulatorRun:
    """One run in this process."""
    seen = Histogram()
    start = time.process_time()
    result = simulate_replica(
        chat_requests(num_requests),
        cache=CACHE,
        scheduler=SCHEDULER,
        cost_model=REFERENCE_COSTS,
        on_finish=seen.add,
        fast_forward=mode == "fast_forward",
    )
    cpu_s = time.process_time() - start
    assert result.counters.finished == num_requests
    return SimulatorRun(
        mode=mode,
        num_requests=num_requests,
        cpu_s=round(cpu_s, 4),
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        num_steps=result.num_steps,
        virtual_s=result.end_s,
        latency_ms=seen.percentiles_ms(),
        timings_crc32=seen.crc32,
    )


def simulate_elsewhere(mode: Mode, num_requests: int) -> tuple[SimulatorRun, float]:
    """One run in a process of its own, and the wall seconds of that process."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pagetwin.conformance.bench.simulation"]
    done = subprocess.run(
        [*command, mode, str(num_requests)], check=True, stdout=subprocess.PIPE, text=True
    )
    wall_s = time.perf_counter() - start
    return msgspec.json.decode(done.stdout, type=SimulatorRun), wall_s


def measure(
    *, num_requests: int, num_requests_long: int, repeats: int, progress: Callable[[str], None]
) -> SimulatorReport:
    """All of it; `progress` is told what comes next. ConfigError on a count below 1."""
    for name, count in (("requests", num_requests), ("repeats", repeats)):
        if count < 1:
            raise ConfigError(f"--{name} {count} is below 1; there must be something to measure")
    if 0 < num_requests_long <= num_requests:
        raise ConfigError(
            f"--long {num_requests_long} is not above --requests {num_requests}; use 0 for no long "
            "run, or raise it"
        )
    progress("start-up")
    startups_s = [simulate_elsewhere("fast_forward", 1)[1] for _ in range(NUM_STARTUPS)]
    jobs: list[tuple[Mode, int]] = [("fast_forward", num_requests), ("stepping", num_requests)]
    jobs *= repeats
    if num_requests_long > 0:
        jobs.append(("fast_forward", num_requests_long))
    runs = []
    for mode, count in jobs:
        progress(f"{mode.replace('_', ' ')}, {count:,} requests")
        runs.append(simulate_elsewhere(mode, count)[0])
    check_agreement(runs)
    return SimulatorReport.of(runs, startups_s)


def check_agreement(runs: list[SimulatorRun]) -> None:
    """Every run of as many requests must have found the same, however it got there."""
    for run in runs:
        same = [one for one in runs if one.num_requests == run.num_requests]
        if len({(one.timings_crc32, one.num_steps) for one in same}) > 1:
            raise ConfigError(
                f"runs of {run.num_requests} requests found different times; fast forward and "
                "stepping must agree: please report this"
            )


def _percentile(bins: Counter[int], percent: int) -> int:
    """The smallest bin that at least so many per cent do not exceed."""
    wanted = -(-bins.total() * percent // 100)
    for place in sorted(bins):
        wanted -= bins[place]
        if wanted <= 0:
            return place
    return 0


if __name__ == "__main__":
    print(json.dumps(msgspec.to_builtins(simulate_here(sys.argv[1], int(sys.argv[2])))))  # type: ignore[arg-type]
