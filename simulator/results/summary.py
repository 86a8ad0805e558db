"""Decides the figures that a run is summed up in."""

import msgspec
import numpy as np

from pagetwin.simulator.clock import TICKS_PER_S
from pagetwin.simulator.results.bill import Bill, bill
from pagetwin.simulator.results.result import Floats, Integers, Result
from pagetwin.simulator.results.slo import Slo, Verdict

PERCENTILES = (50, 90, 95, 99)


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution, in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests within every limit of the objective."""

    requests_per_s: float
    share: float
    """Of all that arrived."""
    verdicts: tuple[Verdict, ...]


class Little(msgspec.Struct, frozen=True, kw_only=True):
    """L = lambda W: the checked books, as people know them."""

    mean_outstanding: float
    arrivals_per_s: float
    mean_time_s: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Latencies are of the requests that finished; None where none has one."""

    seed: int
    costs: str
    """Where the times of steps are from; "" if it need not be said."""
    num_requests: int
    num_finished: int
    num_rejected: int
    num_refused: int
    num_failed: int
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    """Between successive tokens; to a quarter of a percent (`token_gaps`)."""
    e2e_s: Spread | None
    queue_s: Spread | None
    goodput: Goodput | None
    kv_use_mean: float
    """Share of the KV blocks that sequences held, over the looks at the timeline."""
    kv_use_max: float
    prefix_hit_rate: float
    """Of the tokens looked up at admission, those found."""
    num_preemptions: int
    num_evictions: int
    num_steps: int
    busy_share: float
    """Of the time that replicas could serve, that in which they ran a step."""
    num_failures: int
    num_retries: int
    little: Little
    bill: Bill


def summarise(result: Result, slo: Slo | None = None) -> Summary:
    books, seconds = result.conservation, max(result.duration_s, 1e-12)
    counters = [node.counters for node in result.nodes]
    queries = sum(c.prefix_queries for c in counters)
    hits = sum(c.prefix_hit_tokens for c in counters)
    serving_s = sum(node.serving_s for node in result.nodes)
    kv_use = _kv_use(result)
    return Summary(
        seed=result.seed,
        costs=result.label,
        num_requests=books.num_arrived,
        num_finished=books.num_finished,
        num_rejected=books.num_rejected,
        num_refused=books.num_refused,
        num_failed=books.num_failed,
        duration_s=result.duration_s,
        requests_per_s=books.num_finished / seconds,
        output_tokens_per_s=float(result.served("num_output_tokens").sum()) / seconds,
        prompt_tokens_per_s=float(result.served("num_prompt_tokens").sum()) / seconds,
        ttft_s=spread(result.served("ttft_s")),
        tpot_s=spread(result.served("tpot_s")),
        itl_s=weighted_spread(*result.token_gaps()),
        e2e_s=spread(result.served("e2e_s")),
        queue_s=spread(result.served("queue_s")),
        goodput=None if slo is None else _goodput(result, slo, seconds),
        kv_use_mean=float(kv_use.mean()),
        kv_use_max=float(kv_use.max()),
        prefix_hit_rate=hits / queries if queries else 0.0,
        num_preemptions=sum(c.preemptions_recompute + c.preemptions_swap for c in counters),
        num_evictions=sum(c.evictions for c in counters),
        num_steps=sum(node.num_steps for node in result.nodes),
        busy_share=sum(node.busy_s for node in result.nodes) / serving_s if serving_s else 0.0,
        num_failures=result.num_failures,
        num_retries=result.num_retries,
        little=_little(result, seconds),
        bill=bill(result),
    )


def spread(values: Floats) -> Spread | None:
    """Percentiles by linear interpolation, as numpy's."""
    return weighted_spread(values, None)


def weighted_spread(values: Floats, counts: Integers | None) -> Spread | None:
    """Of values that each occur so many times, ascending; the percentiles are then some of them."""
    if not len(values):
        return None
    if counts is None:
        percentiles = np.percentile(values, PERCENTILES)
        count, mean = len(values), float(values.mean())
    else:
        ends = np.cumsum(counts)
        count, mean = int(ends[-1]), float((values * counts).sum() / ends[-1])
        ranks = np.array(PERCENTILES) / 100 * count
        percentiles = values[np.searchsorted(ends, ranks)]
    p50, p90, p95, p99 = (float(value) for value in percentiles)
    return Spread(
        count=count, mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=float(values.max())
    )


def _goodput(result: Result, slo: Slo, seconds: float) -> Goodput:
    num_good = slo.num_good(result)
    return Goodput(
        requests_per_s=num_good / seconds,
        share=num_good / result.conservation.num_arrived,
        verdicts=slo.verdicts(result),
    )


def _little(result: Result, seconds: float) -> Little:
    books = result.conservation
    spent_s = books.request_ticks / TICKS_PER_S
    return Little(
        mean_outstanding=spent_s / seconds,
        arrivals_per_s=books.num_arrived / seconds,
        mean_time_s=spent_s / books.num_arrived,
    )


def _kv_use(result: Result) -> Floats:
    held, blocks = result.timeline["num_held_blocks"], result.timeline["num_blocks"]
    use: Floats = held / np.maximum(blocks, 1)
    # The run starts empty: what is seen before the first arrival says nothing.
    started = result.timeline["time_s"] >= result.start_s
    return use[started] if started.any() else use
