"""One context, many histories: does a request's answer depend on how it came about?

Judges iso.history-independence, the values of the prefix cache (hit = miss, A-B-A, cold twins, no
silent no-op) and of copy-on-write, from tokens alone; from bits where the engine promises them. No
reference model is needed: the engine, each probe by itself and without a cache, is its own.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pagetwin.conformance.adapters.protocol import Adapter, EngineCrashed, SessionRefused
from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.conformance.experiments.agreement import compare
from pagetwin.conformance.experiments.asking import (
    Answer,
    Outcome,
    answer_to,
    run_course,
    scenario_of,
    setting_for,
)
from pagetwin.conformance.experiments.courses import (
    COPIES,
    EVICTIONS,
    HITS,
    Course,
    Setting,
    make_courses,
)
from pagetwin.conformance.experiments.scenarios import NO_CRASH, crashed, play_and_judge
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget

NO_NOOP = "cache.not-a-noop"


class HistoryIndependence:
    """Runs all courses of one seed, then of the next, until the budget ends."""

    id = "history-independence"
    judges = (
        "iso.history-independence",
        "cache.hit-miss-parity",
        "cache.ABA",
        "cache.concurrent-cold",
        NO_NOOP,
        "cow.fork-parity",
        NO_CRASH,
    )
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT})
    weight = 2.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        setting = setting_for(adapter)
        number = 0
        while budget.allows(number):
            yield from _judge_round(adapter, setting, seed + number)
            number += 1


@dataclass
class Tally:
    """What the courses of one round say of one property."""

    examples: int = 0
    goals: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    tokens: int = 0
    near_ties: int = 0

    def evidence(self, property_id: str) -> Iterator[Evidence]:
        """One piece for each violation, the rest of the tally in the last."""
        for found in self.violations[1:]:
            yield Evidence(property_id=property_id, examples=0, violation=found)
        yield Evidence(
            property_id=property_id,
            examples=self.examples,
            goals=dict(self.goals),
            violation=self.violations[0] if self.violations else None,
            undecided="; ".join(self.unmet),
            figures={
                "tokens compared": float(self.tokens),
                "near ties": float(self.near_ties),
                "courses refused": float(len(self.refused)),
            },
        )


def _judge_round(adapter: Adapter, setting: Setting, seed: int) -> Iterator[Evidence]:
    can, dtype = adapter.capabilities(), adapter.describe().dtype
    baseline: dict[str, Answer] = {}
    tallies: dict[str, Tally] = {}
    for course in make_courses(setting, seed):
        if can.missing(course.needs):
            continue
        tally = tallies.setdefault(course.property_id, Tally())
        try:
            outcome = run_course(adapter, course, setting)
        except SessionRefused:
            tally.refused.append(course.name)
            continue
        except EngineCrashed as error:
            tally.unmet.append(f"the engine crashed {course.name!r}")
            yield _judge_crash(adapter, course, setting, error)
            continue
        yield Evidence(property_id=NO_CRASH, examples=len(list(course.asked())))
        if not baseline:
            baseline = {
                one.probe: answer_to(outcome, one.request.request_id)
                for one in course.asked()
                if one.probe is not None
            }
            continue
        judge_course(course, outcome, baseline, can, dtype, tally)
        if course.name == "cold, then warm" and can.has(Flag.CACHED_TOKEN_COUNT):
            yield _judge_noop(course, outcome, setting)
    for property_id, tally in tallies.items():
        yield from tally.evidence(property_id)


def _judge_crash(
    adapter: Adapter, course: Course, setting: Setting, error: EngineCrashed
) -> Evidence:
    """With the scenario that replays it, if it does when it is tried at once."""
    scenario = scenario_of(course, setting)
    played = play_and_judge(scenario, adapter)
    again = any(one.property_id == NO_CRASH for one in played.violations)
    return Evidence(
        property_id=NO_CRASH,
        violation=crashed(error),
        scenario=scenario if again else None,
        records=tuple(played.records) if again else (),
    )


def judge_course(
    course: Course,
    outcome: Outcome,
    baseline: Mapping[str, Answer],
    can: Capabilities,
    dtype: str,
    tally: Tally,
) -> None:
    """Compares every answer of the course to a probe with the probe's own; counts into `tally`."""
    promised = can.has(course.invariance, Flag.CHOSEN_LOGPROB)
    for asked in course.asked():
        if asked.probe is None:
            continue
        params = asked.request.sampling_params
        for index in range(params.num_samples):
            alone = baseline[asked.probe]
            here = answer_to(outcome, asked.request.request_id, index)
            agreement = compare(
                alone,
                here,
                dtype=dtype,
                same_bits=promised and params.num_logprobs is not None,
                is_greedy=params.is_greedy or params.top_k == 1,
            )
            tally.examples += 1
            tally.tokens += agreement.num_compared
            tally.near_ties += agreement.near_ties
            if agreement.difference is not None:
                tally.violations.append(
                    violation(
                        course.property_id,
                        -1,
                        f"{asked.probe} answers differently alone and {course.name!r}: "
                        f"{agreement.difference}",
                        request=f"{asked.request.request_id}/{index}",
                        prompt=list(asked.request.prompt_token_ids),
                        alone=list(alone.token_ids),
                        here=list(here.token_ids),
                    )
                )
    tally.goals.update({goal: outcome.goals[goal] for goal in course.goals if outcome.goals[goal]})
    unmet = _unmet(course, outcome, can)
    if unmet:
        tally.unmet.append(f"{course.name!r} showed no {unmet}")


def _unmet(course: Course, outcome: Outcome, can: Capabilities) -> str:
    """The first goal that did not happen, of those that this engine lets one count."""
    countable = set(course.goals) if can.has(Flag.STEP_TRACE) else set()
    if not can.has(Flag.COUNTERS):
        countable.discard(EVICTIONS)
    if can.of_flag(Flag.COPIES).status != "yes":
        countable.discard(COPIES)  # It may share a prompt's whole blocks, and compute the rest.
    if can.has(Flag.CACHED_TOKEN_COUNT):
        countable |= {HITS} & set(course.goals)
    unmet = (goal for goal in course.goals if goal in countable and not outcome.goals[goal])
    return next(unmet, "")


def _judge_noop(course: Course, outcome: Outcome, setting: Setting) -> Evidence:
    """A probe of more than two blocks, asked a second time in a roomy pool, reports a hit."""
    seen: set[str] = set()
    again = []
    for asked in course.asked():
        request = asked.request
        if asked.probe is not None and request.num_prompt_tokens > 2 * setting.block_size:
            if asked.probe in seen:
                again.append(outcome.cached_tokens.get(request.request_id, 0))
            seen.add(asked.probe)
    found = None
    if again and max(again) < setting.block_size:
        found = violation(
            NO_NOOP,
            -1,
            f"{len(again)} prompts of more than two blocks were asked again, and none was found "
            "in the cache",
            reported=again,
        )
    return Evidence(property_id=NO_NOOP, examples=len(again), violation=found)
