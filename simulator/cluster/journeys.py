"""Decides what is written down of a request on its way through the cluster, and checks the books.

Every request that arrives ends exactly once, in one of four ways. Times are in ticks.
"""

from array import array
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from pagetwin.simulator.timings import Census, RequestTimings
from pagetwin.simulator.workloads.workload import Arrival


class Outcome(IntEnum):
    FINISHED = 0
    REJECTED = 1
    """Turned away at the door (`Admission`)."""
    REFUSED = 2
    """No replica could ever serve it (docs/policy.md P2.5)."""
    FAILED = 3
    """Lost with the replicas that it was on, or nobody was left to serve it."""


NEVER = -1
"""A time that did not come."""


@dataclass(slots=True)
class Journey:
    """One request that is under way."""

    arrival: Arrival
    number: int
    """In the order of arrival, from 0."""
    arrived: int
    first_scheduled: int = NEVER
    first_token: int = NEVER
    num_attempts: int = 0
    node: int = -1
    """The last that it was given to."""
    num_output_tokens: int = 0
    longest_output: int = 0

    @property
    def request_id(self) -> str:
        return self.arrival.request.request_id

    def take(self, timings: RequestTimings) -> None:
        """Adds what a replica says of its part."""
        if self.first_scheduled == NEVER and timings.first_scheduled_ticks is not None:
            self.first_scheduled = timings.first_scheduled_ticks
        self.num_output_tokens += timings.num_output_tokens
        self.longest_output += timings.longest_output


class Ended:
    """Columns of the requests that have ended, in the order in which they did."""

    COLUMNS = (
        "number",
        "session",
        "arrival",
        "first_scheduled",
        "first_token",
        "end",
        "num_prompt_tokens",
        "num_output_tokens",
        "longest_output",
        "num_attempts",
        "node",
        "outcome",
    )

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.columns = {name: array("q") for name in self.COLUMNS}
        self.reasons: dict[str, str] = {}
        """Why, of those that were not served, by request id."""

    def add(self, journey: Journey, outcome: Outcome, now: int) -> None:
        self.ids.append(journey.request_id)
        values = (
            journey.number,
            journey.arrival.session,
            journey.arrived,
            journey.first_scheduled,
            journey.first_token,
            now,
            journey.arrival.request.num_prompt_tokens,
            journey.num_output_tokens,
            journey.longest_output,
            journey.num_attempts,
            journey.node,
            outcome,
        )
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)


class Conservation(msgspec.Struct, frozen=True, kw_only=True):
    """The books of a run, which agree; a run whose books do not is an error of ours.

    Little's law holds to the tick in a run that starts and ends empty: the integral over time of
    the requests in the cluster equals the sum of the times that they spent there.
    """

    num_arrived: int
    num_finished: int
    num_rejected: int
    num_refused: int
    num_failed: int
    request_ticks: int
    """Of either side of Little's law."""


class Journeys:
    """All requests that are under way, and the columns of those that are over."""

    def __init__(self) -> None:
        self.ended = Ended()
        self._live: dict[str, Journey] = {}
        self._num_arrived = 0
        self._counts = dict.fromkeys(Outcome, 0)
        self._census = Census()

    @property
    def num_outstanding(self) -> int:
        return len(self._live)

    def __getitem__(self, request_id: str) -> Journey:
        return self._live[request_id]

    def begin(self, arrival: Arrival, now: int) -> Journey:
        self._census.enter(now)
        journey = Journey(arrival, self._num_arrived, now)
        if journey.request_id in self._live:
            raise AssertionError(f"request {journey.request_id!r} arrives twice")
        self._live[journey.request_id] = journey
        self._num_arrived += 1
        return journey

    def end(self, journey: Journey, outcome: Outcome, now: int, reason: str = "") -> None:
        self._census.leave(now, journey.arrived)
        del self._live[journey.request_id]
        self._counts[outcome] += 1
        self.ended.add(journey, outcome, now)
        if reason:
            self.ended.reasons[journey.request_id] = reason

    def conservation(self) -> Conservation:
        """The books at the end. Raises AssertionError if they do not agree."""
        if self._live:
            raise AssertionError(f"{len(self._live)} requests never ended: {list(self._live)[:3]}")
        if sum(self._counts.values()) != self._num_arrived:
            raise AssertionError(f"{self._num_arrived} requests arrived, {self._counts} ended")
        census = self._census
        if census.outstanding_ticks != census.sojourn_ticks:
            raise AssertionError(
                f"Little's law: requests were there for {census.outstanding_ticks} ticks by the "
                f"number outstanding, for {census.sojourn_ticks} by their own times"
            )
        return Conservation(
            num_arrived=self._num_arrived,
            num_finished=self._counts[Outcome.FINISHED],
            num_rejected=self._counts[Outcome.REJECTED],
            num_refused=self._counts[Outcome.REFUSED],
            num_failed=self._counts[Outcome.FAILED],
            request_ticks=census.outstanding_ticks,
        )
