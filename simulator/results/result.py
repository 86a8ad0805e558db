"""Decides what is known of a finished run: columns of its requests, its nodes, its timeline."""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pagetwin.engine.step import Counters
from pagetwin.simulator.clock import TICKS_PER_S, to_seconds
from pagetwin.simulator.cluster.journeys import NEVER, Conservation, Ended, Outcome
from pagetwin.simulator.cluster.node import Node, State
from pagetwin.simulator.token_gaps import middle_of

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class NodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's place over the whole run."""

    number: int
    pool: str
    num_gpus: int
    busy_s: float
    """In steps."""
    paid_s: float
    """Not switched off."""
    serving_s: float
    num_steps: int
    num_blocks: int
    price_per_gpu_h: float
    power_per_gpu_w: float
    counters: Counters

    @classmethod
    def of(cls, node: Node) -> "NodeResult":
        def spent(*states: State) -> float:
            return to_seconds(sum(s.end - s.start for s in node.spells if s.state in states))

        return cls(
            number=node.number,
            pool=node.pool.name,
            num_gpus=node.pool.num_gpus,
            busy_s=to_seconds(sum(result.busy_ticks for result in node.finished)),
            paid_s=spent(State.STARTING, State.SERVING, State.DRAINING, State.DOWN),
            serving_s=spent(State.SERVING, State.DRAINING),
            num_steps=sum(result.num_steps for result in node.finished),
            num_blocks=node.pool.cache.num_blocks,
            price_per_gpu_h=node.pool.price_per_gpu_h,
            power_per_gpu_w=node.pool.power_per_gpu_w,
            counters=node.counters(),
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run with one seed.

    `requests` and `timeline` are columns by name, all of one length, ready for numpy or
    `pandas.DataFrame(result.requests)`; a time that did not come is NaN. `requests` is in the order
    of arrival.
    """

    seed: int
    label: str
    """Where the costs are from, as every output of theirs must say; "" if it need not be said."""
    request_ids: tuple[str, ...]
    requests: dict[str, npt.NDArray[Any]]
    reasons: dict[str, str]
    """Why, of requests that were not served, by id."""
    timeline: dict[str, npt.NDArray[Any]]
    gap_counts: dict[int, int]
    """Times between tokens, by bucket (`token_gaps`)."""
    nodes: tuple[NodeResult, ...]
    conservation: Conservation
    start_s: float
    """The first arrival."""
    end_s: float
    """The last end."""
    num_failures: int
    """Of replicas."""
    num_retries: int
    """Of requests whose replica failed."""

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def served(self, column: str) -> Floats:
        """A column of the requests that finished, without those that have no such time."""
        is_finished = self.requests["outcome"] == Outcome.FINISHED
        values: Floats = self.requests[column][is_finished].astype(np.float64)
        return values[~np.isnan(values)]

    def token_gaps(self) -> tuple[Floats, Integers]:
        """(seconds, how many) of the times between tokens, ascending."""
        buckets = sorted(bucket for bucket, count in self.gap_counts.items() if count > 0)
        seconds = np.array([middle_of(bucket) / TICKS_PER_S for bucket in buckets])
        return seconds, np.array([self.gap_counts[b] for b in buckets], dtype=np.int64)


def request_columns(ended: Ended) -> tuple[tuple[str, ...], dict[str, npt.NDArray[Any]]]:
    """(ids, columns in the order of arrival): times in seconds, lengths, and where they were."""
    raw = {name: np.frombuffer(column, dtype=np.int64) for name, column in ended.columns.items()}
    order = np.argsort(raw["number"], kind="stable")
    raw = {name: column[order] for name, column in raw.items()}
    arrival = raw["arrival"]
    gaps_after_first = raw["longest_output"] - 1
    has_tpot = (raw["first_token"] != NEVER) & (gaps_after_first > 0)
    decode_s = _seconds_between(raw["first_token"], raw["end"])
    columns: dict[str, npt.NDArray[Any]] = {
        "session": raw["session"],
        "arrival_s": arrival / TICKS_PER_S,
        "first_scheduled_s": _seconds_at(raw["first_scheduled"]),
        "first_token_s": _seconds_at(raw["first_token"]),
        "end_s": raw["end"] / TICKS_PER_S,
        "queue_s": _seconds_between(arrival, raw["first_scheduled"]),
        "ttft_s": _seconds_between(arrival, raw["first_token"]),
        "tpot_s": np.where(has_tpot, decode_s / np.maximum(gaps_after_first, 1), np.nan),
        "e2e_s": _seconds_between(arrival, raw["end"]),
        "num_prompt_tokens": raw["num_prompt_tokens"],
        "num_output_tokens": raw["num_output_tokens"],
        "num_attempts": raw["num_attempts"],
        "node": raw["node"],
        "outcome": raw["outcome"],
    }
    return tuple(ended.ids[place] for place in order.tolist()), columns


def _seconds_at(ticks: Integers) -> Floats:
    return np.where(ticks == NEVER, np.nan, ticks / TICKS_PER_S)


def _seconds_between(start: Integers, end: Integers) -> Floats:
    missing = (start == NEVER) | (end == NEVER)
    return np.where(missing, np.nan, (end - start) / TICKS_PER_S)
