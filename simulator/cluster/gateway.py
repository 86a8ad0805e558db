"""Decides what happens to a request from its arrival to its end."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import simpy

from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.cluster.admission import reason_to_reject, reason_to_reject_at
from pagetwin.simulator.cluster.description import Cluster, Policy, Role
from pagetwin.simulator.cluster.disaggregation import Uplink, decode_part, prefill_part
from pagetwin.simulator.cluster.journeys import NEVER, Journey, Journeys, Outcome
from pagetwin.simulator.cluster.node import Node, State
from pagetwin.simulator.cluster.routers import ROUTERS
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.occasions import At, arrival_ticks
from pagetwin.simulator.process import Events
from pagetwin.simulator.timings import RequestTimings
from pagetwin.simulator.workloads.workload import Arrival, Stream


def schedule(env: simpy.Environment, ticks: int, action: Callable[[], None]) -> None:
    """Does something at a tick, before the steps that end then."""
    event = At(env, ticks)
    assert event.callbacks is not None
    event.callbacks.append(lambda _: action())


class Gateway:
    """All requests pass it: it admits, routes, tries again and keeps the books.

    `nodes` is to be set before the environment runs; nodes report to `first_token` and `finished`.
    `over` happens when every request has ended and none will come.
    """

    def __init__(
        self,
        env: simpy.Environment,
        cluster: Cluster,
        policy: Policy,
        stream: Stream,
        *,
        seed: int,
        cost_of: Callable[[Node], CostModel],
        skip_unfit: bool = False,
    ) -> None:
        self.nodes: Sequence[Node] = ()
        self.journeys = Journeys()
        self.over = env.event()
        self.num_retries = 0
        self._env = env
        self._cluster = cluster
        self._policy = policy
        self._stream = stream
        self._cost_of = cost_of
        self._skip_unfit = skip_unfit
        roles: tuple[Role, ...] = ("serve", "prefill", "decode")
        self._routers = {role: ROUTERS[policy.router](seed) for role in roles}
        self._waiting: Mapping[Role, deque[tuple[Journey, Request]]] = {
            role: deque() for role in roles
        }
        self._uplinks: dict[int, Uplink] = {}
        self._num_to_come = 1  # the stream itself, until it has no more arrivals
        env.process(self._feed())

    @property
    def now(self) -> int:
        return int(self._env.now)

    def catch_up(self) -> None:
        """Hears all that nodes have put off to report."""
        for node in self.nodes:
            node.catch_up()

    def num_waiting(self, role: Role) -> int:
        """Requests that no node of the role could be given."""
        return len(self._waiting[role])

    def first_token(self, request_id: str, now: int) -> None:
        journey = self.journeys[request_id]
        # A second attempt repeats what the user has seen.
        if journey.first_token == NEVER:
            journey.first_token = now

    def finished(self, node: Node, timings: RequestTimings) -> None:
        """A node has done its part of a request, now or, where that changes nothing, before."""
        journey = self.journeys[timings.request_id]
        node.left()
        journey.take(timings)
        rest = None
        if node.pool.role == "prefill":
            rest = decode_part(journey.arrival.request, node.pool.scheduler.max_model_len)
        if rest is None:
            assert timings.finish_ticks is not None
            self._end(journey, Outcome.FINISHED, at=timings.finish_ticks)
        else:
            self._carry(journey, node, rest)
        node.turn_off_if_idle(self.now)

    def lose(self, node: Node) -> None:
        """The node fails; what it had under way begins again elsewhere, in order."""
        for request in node.fail(self.now):
            self._retry(self.journeys[request.request_id])
        self.give_up_where_nobody_comes()

    def flush(self, role: Role) -> None:
        """Gives waiting requests to nodes that are there now."""
        waiting = self._waiting[role]
        for _ in range(len(waiting)):
            journey, request = waiting.popleft()
            self._dispatch(journey, request, role)

    def give_up_where_nobody_comes(self) -> None:
        for role, waiting in self._waiting.items():
            while waiting and not self._may_come(role):
                journey, _ = waiting.popleft()
                self._end(journey, Outcome.FAILED, f"no replica is left to {role}")

    def _feed(self) -> Events:
        latest = 0
        for arrival in self._stream.arrivals():
            ticks = arrival_ticks(arrival.request, latest)
            latest = ticks
            if ticks > self.now:
                yield At(self._env, ticks)
            self._arrive(arrival)
        self._num_to_come -= 1
        for node in self.nodes:
            node.report_at_once()
        self._check_over()

    def _arrive(self, arrival: Arrival) -> None:
        self.catch_up()
        journey = self.journeys.begin(arrival, self.now)
        role = self._cluster.entry_role
        nodes = self._routable(role)
        outstanding = self.journeys.num_outstanding - 1
        reason = reason_to_reject(self._policy.admission, outstanding, nodes)
        if reason:
            self._end(journey, Outcome.REJECTED, reason)
        else:
            self._dispatch(journey, self._entry_part(journey), role)

    def _entry_part(self, journey: Journey) -> Request:
        request = journey.arrival.request
        return prefill_part(request) if self._cluster.entry_role == "prefill" else request

    def _dispatch(self, journey: Journey, request: Request, role: Role) -> None:
        nodes = self._routable(role)
        if not nodes:
            if self._may_come(role):
                self._waiting[role].append((journey, request))
            else:
                self._end(journey, Outcome.FAILED, f"no replica is left to {role}")
            return
        node = self._routers[role].choose(journey.arrival, nodes)
        is_first = role != "decode" and journey.num_attempts == 0
        if is_first:
            admission, costs = self._policy.admission, self._cost_of(node)
            reason = reason_to_reject_at(admission, request, node, costs)
            if reason:
                self._end(journey, Outcome.REJECTED, reason)
                return
        journey.num_attempts += role != "decode"
        journey.node = node.number
        refusal = node.submit(request)
        if refusal is not None:
            if not self._skip_unfit:
                raise RequestError(f"{refusal}; or cut requests to fit, or leave out what does not")
            self._end(journey, Outcome.REFUSED, refusal)

    def _carry(self, journey: Journey, source: Node, rest: Request) -> None:
        """Sends the K/V of a prompt over the link, and its request after it."""
        link, generation = self._cluster.link, source.generation
        assert link is not None
        uplink = self._uplinks.setdefault(source.number, Uplink(link))
        source.num_transfers += 1

        def arrived() -> None:
            if source.generation != generation:
                self._retry(journey)
                return
            source.num_transfers -= 1
            self._dispatch(journey, rest, "decode")
            source.turn_off_if_idle(self.now)

        num_tokens = journey.arrival.request.num_prompt_tokens
        schedule(self._env, uplink.done_at(num_tokens, self.now), arrived)

    def _retry(self, journey: Journey) -> None:
        """Begins a request again, whose replica was lost."""
        limit = self._cluster.failures.max_attempts
        if journey.num_attempts >= limit:
            self._end(journey, Outcome.FAILED, f"its replica failed {journey.num_attempts} times")
            return
        self.num_retries += 1
        journey.first_scheduled = NEVER
        journey.num_output_tokens = journey.longest_output = 0
        self._dispatch(journey, self._entry_part(journey), self._cluster.entry_role)

    def _end(
        self, journey: Journey, outcome: Outcome, reason: str = "", *, at: int | None = None
    ) -> None:
        """It ends at tick `at`, or now."""
        now = self.now if at is None else at
        self.journeys.end(journey, outcome, now, reason)
        after = self._stream.follow_up(journey.request_id, to_seconds(now))
        if after is not None:
            self._num_to_come += 1
            # Rounding may put it a tick into the past.
            ticks = max(self.now, arrival_ticks(after.request, 0))
            schedule(self._env, ticks, lambda: self._come(after))
        self._check_over()

    def _come(self, arrival: Arrival) -> None:
        self._num_to_come -= 1
        self._arrive(arrival)

    def _check_over(self) -> None:
        is_over = self._num_to_come == 0 and self.journeys.num_outstanding == 0
        if is_over and not self.over.triggered:
            self.over.succeed()

    def _routable(self, role: Role) -> list[Node]:
        return [node for node in self.nodes if node.pool.role == role and node.is_routable]

    def _may_come(self, role: Role) -> bool:
        """Whether a node of the role will be there, if one waits."""
        scaling = self._policy.autoscaling
        for node in self.nodes:
            if node.pool.role != role:
                continue
            if node.state in (State.STARTING, State.SERVING, State.DRAINING):
                return True
            if node.state is State.DOWN and node.will_return:
                return True
            if node.state is State.OFF and scaling is not None and scaling.pool == node.pool.name:
                return True
        return False
