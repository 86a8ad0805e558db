"""Decides the requests of conversations: every turn's prompt is all that was said before.

Sessions arrive in an open loop; within one, the next turn comes a pause after the answer. A
turn's prompt is the system prompt, the earlier turns and the answers that the twin gave to them,
token by token, and what the user adds; so the prefix cache finds what it would find.
"""

import math
from collections.abc import Iterator
from itertools import islice

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request
from pagetwin.simulator.token_source import hashed_token
from pagetwin.simulator.workloads.arrival_times import ArrivalTimes, think_times
from pagetwin.simulator.workloads.content import Kind, Segment, SystemPrompts, tokens_of
from pagetwin.simulator.workloads.draws import Purpose, generator
from pagetwin.simulator.workloads.lengths import Lengths
from pagetwin.simulator.workloads.open_loop import system_segments
from pagetwin.simulator.workloads.workload import Arrival, Extent, plain_request

MAX_TURNS = 10**4


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """Conversations; turn k of session s is `s000000s.k`.

    The extent counts turns, all of them, and a session begins only if there is room for its whole
    length; a duration bounds the beginnings.
    """

    arrivals: ArrivalTimes
    """Of the sessions."""
    turns: Lengths
    """Turns of a session."""
    think_s: float
    """Mean of the exponential pauses between an answer and the next turn."""
    prompt: Lengths
    """Tokens that the user adds in a turn."""
    output: Lengths
    extent: Extent
    system: SystemPrompts | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.think_s) and self.think_s >= 0):
            raise ConfigError(f"think={self.think_s!r} is not a number of seconds from 0 upwards")

    def begin(self, seed: int) -> "SessionStream":
        return SessionStream(self, seed)


class _Session:
    """A conversation: what remains to be said, drawn when it began."""

    def __init__(
        self, number: int, said: tuple[int, ...], turns: list[tuple[int, int, float]]
    ) -> None:
        self.number = number
        self._said = said
        self._turns = turns
        self._next = 0
        self._latest: Request | None = None

    def request(self, now_s: float) -> Arrival | None:
        """The next turn, if there is one, after the pause before it."""
        if self._next == len(self._turns):
            return None
        turn, self._next = self._next, self._next + 1
        num_added, num_output_tokens, pause_s = self._turns[turn]
        own = Segment(Kind.OWN, self.number * MAX_TURNS + turn, num_added)
        prompt = (*self._said, *self._answer(), *tokens_of((own,)))
        name = f"s{self.number:07}.{turn:04}"
        request = plain_request(name, prompt, num_output_tokens, now_s + pause_s)
        self._said, self._latest = prompt, request
        return Arrival(request, self.number)

    def _answer(self) -> Iterator[int]:
        """The tokens that the latest turn is answered with."""
        latest = self._latest
        if latest is not None:
            for position in range(latest.sampling_params.max_tokens or 0):
                yield hashed_token(latest, 0, position)


class SessionStream:
    """The sessions under way."""

    reacts = True

    def __init__(self, sessions: Sessions, seed: int) -> None:
        self._sessions = sessions
        self._seed = seed
        self._live: dict[str, _Session] = {}

    def arrivals(self) -> Iterator[Arrival]:
        plan, seed, num_turns = self._sessions, self._seed, 0
        lengths = plan.turns.draws(generator(seed, Purpose.TURNS))
        pauses = think_times(generator(seed, Purpose.THINKING), plan.think_s)
        prompts = plan.prompt.draws(generator(seed, Purpose.PROMPTS))
        outputs = plan.output.draws(generator(seed, Purpose.OUTPUTS))
        systems = system_segments(plan.system, seed)
        for number, arrival_s in enumerate(plan.arrivals.times(seed)):
            count = min(next(lengths), MAX_TURNS)
            if not plan.extent.admits(num_turns + count - 1, arrival_s):
                return
            num_turns += count
            turns = list(islice(zip(prompts, outputs, pauses, strict=True), count))
            turns[0] = (*turns[0][:2], 0.0)
            session = _Session(number, tokens_of(next(systems)), turns)
            first = session.request(arrival_s)
            assert first is not None
            self._live[first.request.request_id] = session
            yield first

    def follow_up(self, request_id: str, now_s: float) -> Arrival | None:
        session = self._live.pop(request_id)
        arrival = session.request(now_s)
        if arrival is not None:
            self._live[arrival.request.request_id] = session
        return arrival
