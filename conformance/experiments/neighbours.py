"""Neighbours: does what other requests contain change a request's answer?

The same batch twice, but for the bystanders' tokens: lengths, order and parameters are equal, so
every step has the same shapes and only content can leak. Stale rows, masks that let another
sequence through and shared buffers show here.
"""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import msgspec

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.asking import answer_to, run_course, setting_for
from pagetwin.conformance.experiments.courses import Asked, Course, Setting, batch_course
from pagetwin.conformance.experiments.history_independence import Tally, judge_course
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget

NEIGHBOUR = "iso.neighbour"


class Neighbours:
    """One batch of probes and bystanders after the other, each beside its altered copy."""

    id = "neighbours"
    judges = (NEIGHBOUR,)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT})
    weight = 0.5

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        setting, can = setting_for(adapter), adapter.capabilities()
        number = 0
        while budget.allows(number):
            course = replace(
                batch_course(setting, seed + number),
                property_id=NEIGHBOUR,
                invariance=Flag.INVARIANT_RUN,
            )
            other = with_other_bystanders(course, setting, seed + number)
            first, second = (run_course(adapter, one, setting) for one in (course, other))
            baseline = {
                one.probe: answer_to(first, one.request.request_id)
                for one in course.asked()
                if one.probe is not None
            }
            tally = Tally()
            judge_course(other, second, baseline, can, adapter.describe().dtype, tally)
            yield from tally.evidence(NEIGHBOUR)
            number += 1


def with_other_bystanders(course: Course, setting: Setting, seed: int) -> Course:
    """The course with every token of every bystander's prompt replaced by another one."""
    random = Random(f"bystanders {seed}")

    def changed(asked: Asked) -> Asked:
        if asked.probe is not None:
            return asked
        shift = [random.randrange(1, setting.vocab_size) for _ in asked.request.prompt_token_ids]
        tokens = zip(asked.request.prompt_token_ids, shift, strict=True)
        prompt = tuple((token + by) % setting.vocab_size for token, by in tokens)
        request = msgspec.structs.replace(asked.request, prompt_token_ids=prompt)
        return replace(asked, request=request)

    phases = tuple(tuple(changed(asked) for asked in phase) for phase in course.phases)
    return replace(course, name=f"{course.name}, with other neighbours", phases=phases)
