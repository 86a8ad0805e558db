"""Asking an engine: a course becomes a session, and its observations become answers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    RecordingSession,
    Session,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.courses import HITS, Course, Knobs, Setting
from pagetwin.conformance.goals import count_goals
from pagetwin.conformance.observation import (
    AnyObservation,
    CachedTokens,
    Failed,
    Finished,
    Refused,
    Scored,
    TextSeen,
    TokenSeen,
)
from pagetwin.conformance.scenario import Scenario, ScenarioRequest, SubmitEvent
from pagetwin.engine.config import CacheConfig, SchedulerConfig

DEFAULT_BLOCK_SIZE = 4
DEFAULT_VOCAB_SIZE = 97
"""Where an engine does not say: no vocabulary is smaller."""
LONGEST_IN_BLOCKS = 12
ROOMY_BLOCKS = 400
TIMEOUT_S = 120.0
ROUNDS_OF_A_PHASE = 1000


class Answer(NamedTuple):
    """One sample of one request, as its client saw it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    tops: tuple[tuple[Scored, ...], ...]
    reason: str
    """Why it ended; an error's text if it was refused or failed, empty if it never ended."""
    text: str = ""
    """What was shown of it as text, where the session has text."""


NO_ANSWER = Answer((), (), (), "")
"""What agrees with no other."""


class Outcome(NamedTuple):
    """What a course came to."""

    answers: dict[str, dict[int, Answer]]
    """By request id and sample index."""
    goals: Counter[str]
    cached_tokens: dict[str, int]
    """By request id, where the engine says."""


def setting_for(adapter: Adapter) -> Setting:
    """The shape of courses for this engine: its blocks, its vocabulary, what it reports."""
    info, can = adapter.describe(), adapter.capabilities()
    size = info.block_size or DEFAULT_BLOCK_SIZE
    longest = LONGEST_IN_BLOCKS * size
    num_logprobs = None
    if can.has(Flag.CHOSEN_LOGPROB):
        num_logprobs = 2 if can.has(Flag.TOPK_LOGPROB) else 0
    return Setting(
        vocab_size=info.vocab_size or DEFAULT_VOCAB_SIZE,
        block_size=size,
        max_model_len=min(longest, info.max_model_len or longest),
        with_seeds=can.has(Flag.SEED, Flag.TEMPERATURE),
        num_logprobs=num_logprobs,
    )


def session_config(setting: Setting, knobs: Knobs, *, seed: int = 0) -> SessionConfig:
    """A roomy session, changed by `knobs` (fields of CacheConfig and SchedulerConfig by name)."""
    cache = {"num_blocks": ROOMY_BLOCKS, "block_size": setting.block_size}
    cache |= {k: v for k, v in knobs.items() if k in CacheConfig.__struct_fields__}
    scheduler = {
        "max_model_len": setting.max_model_len,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
    }
    scheduler |= {k: v for k, v in knobs.items() if k in SchedulerConfig.__struct_fields__}
    return SessionConfig(
        cache=msgspec.convert(cache, CacheConfig),
        scheduler=msgspec.convert(scheduler, SchedulerConfig),
        seed=seed,
    )


@contextmanager
def opened(adapter: Adapter, config: SessionConfig, *, as_it_is: bool) -> Iterator[Session]:
    """A session, closed at the end.

    With `as_it_is`, an engine that cannot be configured is taken with the knobs it has; what the
    course needs does not depend on them. Raises SessionRefused otherwise.
    """
    try:
        session = adapter.open(config)
    except SessionRefused:
        if not as_it_is:
            raise
        session = adapter.open(SessionConfig(seed=config.seed, model=config.model))
    try:
        yield session
    finally:
        session.close()


def run_course(adapter: Adapter, course: Course, setting: Setting) -> Outcome:
    """Runs the phases one after the other. Raises SessionRefused where the engine cannot be set
    up for it."""
    config = session_config(setting, course.knobs)
    with opened(adapter, config, as_it_is=course.as_it_is) as session:
        for phase in course.phases:
            for asked in phase:
                session.submit(asked.request)
            session.run(TIMEOUT_S)
        return outcome_of(session)


def scenario_of(course: Course, setting: Setting) -> Scenario:
    """The course as a file that any engine can replay; phases are far apart."""
    config = session_config(setting, course.knobs)
    assert config.cache is not None
    assert config.scheduler is not None
    rounds = {
        asked.request.request_id: number * ROUNDS_OF_A_PHASE
        for number, phase in enumerate(course.phases)
        for asked in phase
    }
    return Scenario(
        cache=config.cache,
        scheduler=config.scheduler,
        requests=tuple(ScenarioRequest(request=asked.request) for asked in course.asked()),
        events=tuple(SubmitEvent(request_id=name, round=at) for name, at in rounds.items()),
        vocab_size=setting.vocab_size,
        note=course.name,
    )


def outcome_of(session: Session) -> Outcome:
    observed = session.observations()
    cached = {one.request_id: one.count for one in observed if isinstance(one, CachedTokens)}
    goals: Counter[str] = Counter()
    if isinstance(session, RecordingSession):
        goals = count_goals(list(session.records()))
    else:
        goals[HITS] = sum(count > 0 for count in cached.values())
    return Outcome(answers_of(observed), goals, cached)


def answers_of(observed: Sequence[AnyObservation]) -> dict[str, dict[int, Answer]]:
    """The answers by request and sample, in the order in which they began."""
    tokens: dict[tuple[str, int], list[TokenSeen]] = {}
    texts: dict[tuple[str, int], str] = {}
    reasons: dict[tuple[str, int], str] = {}
    for one in observed:
        if isinstance(one, TokenSeen):
            tokens.setdefault((one.request_id, one.sample_index), []).append(one)
        elif isinstance(one, TextSeen):
            place = one.request_id, one.sample_index
            texts[place] = texts.get(place, "") + one.text
        elif isinstance(one, Finished):
            tokens.setdefault((one.request_id, one.sample_index), [])
            reasons[one.request_id, one.sample_index] = one.reason
        elif isinstance(one, Refused | Failed):
            tokens.setdefault((one.request_id, 0), [])
            reasons[one.request_id, 0] = one.error
    answers: dict[str, dict[int, Answer]] = {}
    for (request_id, index), seen in tokens.items():
        answers.setdefault(request_id, {})[index] = Answer(
            token_ids=tuple(one.token_id for one in seen),
            logprobs=tuple(one.logprob for one in seen),
            tops=tuple(one.top for one in seen),
            reason=reasons.get((request_id, index), ""),
            text=texts.get((request_id, index), ""),
        )
    return answers


def answer_to(outcome: Outcome, request_id: str, sample_index: int = 0) -> Answer:
    """The sample's answer; NO_ANSWER if nothing came."""
    return outcome.answers.get(request_id, {}).get(sample_index, NO_ANSWER)
