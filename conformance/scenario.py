"""Scenarios: what happens to a scheduler, in logical time, as one versioned JSON file.

A scenario is self-contained: both sides of a comparison, on any machine, get the same requests
and the same events from it. Logical time counts *rounds*: one turn of a driver's loop, which
applies the round's events, asks for a plan, and closes a step.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from pagetwin.conformance.faults.fault import AnyFault
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request

SCHEMA = "pagetwin.scenario/1"


class PromptRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`length` token ids drawn from the scenario's vocabulary by `random.Random(seed)`."""

    seed: int
    length: int

    def token_ids(self, vocab_size: int) -> tuple[int, ...]:
        random = Random(self.seed)
        return tuple(random.randrange(vocab_size) for _ in range(self.length))


class ScenarioRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request, its prompt given as token ids or, if `prompt` is set, as a recipe."""

    request: Request
    prompt: PromptRecipe | None = None


class Event(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="event", forbid_unknown_fields=True
):
    """Something that happens in a round: before its plan is made, or, if `in_flight`, between
    its plan and the next result. Events of one moment happen in the order of the file."""

    round: int
    in_flight: bool = False


class SubmitEvent(Event, frozen=True, kw_only=True, tag="submit"):
    request_id: str
    """May be submitted again: that is refused while the id is in use, and else another life."""


class AbortEvent(Event, frozen=True, kw_only=True, tag="abort"):
    request_id: str
    """May name an unknown or finished request: then nothing happens."""


class PreemptEvent(Event, frozen=True, kw_only=True, tag="preempt"):
    """A forced preemption (docs/policy.md P3.5)."""

    request_id: str
    """May name a request that does not run: then nothing happens."""


class ResetEvent(Event, frozen=True, kw_only=True, tag="reset"):
    pass


class ResultEvent(Event, frozen=True, kw_only=True, tag="result"):
    """The oldest step in flight, if there is one, takes effect now, and not only when the round
    ends."""


AnyEvent = SubmitEvent | AbortEvent | PreemptEvent | ResetEvent | ResultEvent


class ScriptedOutput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Output tokens that a sequence is given in order, where an executor can be told."""

    seq_id: str
    token_ids: tuple[int, ...]
    then_fails: bool = False
    """After these its row gives no token (docs/policy.md P5.1c); otherwise token 0, again and
    again."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration, requests and events. Raises ValueError if they do not fit together."""

    schema: str = SCHEMA
    cache: CacheConfig
    scheduler: SchedulerConfig
    requests: tuple[ScenarioRequest, ...]
    events: tuple[AnyEvent, ...]
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    """Given to every request that names none of its own."""
    failing_requests: tuple[str, ...] = ()
    """Requests some of whose rows give no token (docs/policy.md P5.1c)."""
    fault: AnyFault | None = None
    """What goes wrong while it is played; then it is held against itself without that."""
    outputs: tuple[ScriptedOutput, ...] = ()
    """If any are given, no token is computed: these are what decides where sequences end."""
    note: str = ""
    """Why the scenario is kept."""

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} is below 1")
        known = [entry.request.request_id for entry in self.requests]
        submitted = [event.request_id for event in self.events if isinstance(event, SubmitEvent)]
        if set(known) != set(submitted) or len(set(known)) != len(known):
            raise ValueError(
                f"each request must have an id of its own and be submitted, but requests are "
                f"{sorted(known)} and submit events {sorted(submitted)}"
            )
        if any(event.round < 0 for event in self.events):
            raise ValueError("an event's round is negative; rounds count from 0")
        for request in self._expand():
            outside = [t for t in request.prompt_token_ids if not 0 <= t < self.vocab_size]
            if outside:
                raise ValueError(
                    f"request {request.request_id!r} has prompt token {outside[0]}, outside "
                    f"[0, {self.vocab_size})"
                )

    def requests_by_id(self) -> dict[str, Request]:
        """The requests with their prompts and EOS ids filled in, in file order."""
        return {request.request_id: request for request in self._expand()}

    def events_at(self, round_number: int, *, in_flight: bool) -> Iterator[AnyEvent]:
        for event in self.events:
            if event.round == round_number and event.in_flight == in_flight:
                yield event

    @property
    def last_round(self) -> int:
        """Round of the last event, -1 if there is none."""
        return max((event.round for event in self.events), default=-1)

    @property
    def max_rounds(self) -> int:
        """Rounds within which everything must have finished (docs/policy.md P2.6).

        The first sequence in order is never preempted for another, so each sequence needs at
        most M steps of prefill and M of decode while it is first; one that is forced to start again
        needs them again. The factor 4 leaves room for results that arrive a round late.
        """
        samples = {entry.request.request_id: entry.request.num_samples for entry in self.requests}
        restarts = (
            samples.get(one.request_id, 0) for one in self.events if isinstance(one, PreemptEvent)
        )
        sequences = sum(samples.values()) + sum(restarts)
        return self.last_round + 4 * self.scheduler.max_model_len * max(1, sequences) + 16

    def _expand(self) -> Iterator[Request]:
        for entry in self.requests:
            request = entry.request
            prompt = request.prompt_token_ids
            if entry.prompt is not None:
                prompt = entry.prompt.token_ids(self.vocab_size)
            yield msgspec.structs.replace(
                request,
                prompt_token_ids=prompt,
                eos_token_ids=request.eos_token_ids or self.eos_token_ids,
            )


class _SchemaOnly(msgspec.Struct):
    schema: str = ""


def encode_scenario(scenario: Scenario) -> bytes:
    """The scenario as indented JSON, with only those fields that are not at their defaults."""
    data = {"schema": scenario.schema, **_without_defaults(scenario)}
    return msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n"


def decode_scenario(data: bytes, source: str = "scenario") -> Scenario:
    """Reads a scenario. Raises TraceError, naming `source`, on another schema or bad content."""
    try:
        schema = msgspec.json.decode(data, type=_SchemaOnly).schema
        if schema != SCHEMA:
            raise TraceError(
                f"{source}: schema {schema!r}, this version reads {SCHEMA!r}; "
                "use the pagetwin version that wrote it"
            )
        return msgspec.json.decode(data, type=Scenario)
    except msgspec.DecodeError as error:
        raise TraceError(
            f"{source}: not a scenario ({error}); compare it with a file that `save_scenario` wrote"
        ) from None


def load_scenario(path: Path) -> Scenario:
    """Reads a scenario file. Raises TraceError naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_scenario(data, str(path))


def _without_defaults(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        kept = {config.tag_field: config.tag} if config.tag_field else {}
        for field in msgspec.structs.fields(value):
            own = getattr(value, field.name)
            if own != field.default:
                kept[field.name] = _without_defaults(own)
        return kept
    if isinstance(value, tuple):
        return [_without_defaults(item) for item in value]
    return value


def save_scenario(scenario: Scenario, path: Path) -> None:
    path.write_bytes(encode_scenario(scenario))
