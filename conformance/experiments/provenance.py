"""mem.provenance: an engine runs checkpoints whose output tokens say which slots were read."""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    EngineInfo,
    RecordingSession,
    Session,
)
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.tight_pool import open_tight, tight_pool
from pagetwin.conformance.observation import AnyObservation, CachedTokens
from pagetwin.conformance.provenance.judge import PROPERTY_ID, Provenance, judge, violations
from pagetwin.conformance.provenance.labels import Labels
from pagetwin.conformance.provenance.recipe import ProvenanceRecipe, read_recipe
from pagetwin.conformance.provenance.variants import VARIANTS
from pagetwin.conformance.provenance.workload import WorkloadShape, draw_rounds
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.trace import PlanRecord

LEAST_SPAN = 150
"""Longest prompt, in tokens, unless the offset asks for longer ones."""
NUM_FAMILIES = 3
MAX_OUTPUT_TOKENS = 24
TIMEOUT_S = 300.0


class ProvenanceExperiment:
    """Each example is one session on one checkpoint: rounds of requests that share prefixes, in
    a pool that is too small for them, where the engine lets one choose."""

    id = "provenance"
    judges: tuple[str, ...] = (PROPERTY_ID,)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.CHECKPOINT})
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        # Here and not above, so that suites without it need no torch.
        from pagetwin.conformance.provenance.checkpoint import write_checkpoint

        info = adapter.describe()
        served = _served_recipe(info)
        recipes = list(VARIANTS.items()) if served is None else [("served", served)]
        with TemporaryDirectory(prefix="pagetwin-provenance-") as folder:
            for example in count():
                if not budget.allows(example):
                    return
                name, recipe = recipes[example % len(recipes)]
                model = None
                if served is None:
                    path = Path(folder) / name
                    model = str(path if path.exists() else write_checkpoint(recipe, path))
                random = Random(f"{seed}/{example}")
                yield from _example(adapter, info, recipe, model, random, f"{name}/{example}")


def _served_recipe(info: EngineInfo) -> ProvenanceRecipe | None:
    """The recipe of the checkpoint that the engine already runs, if that is one."""
    folder = Path(info.model)
    return read_recipe(folder) if (folder / "config.json").is_file() else None


def _example(
    adapter: Adapter,
    info: EngineInfo,
    recipe: ProvenanceRecipe,
    model: str | None,
    random: Random,
    name: str,
) -> Iterator[Evidence]:
    block_size = info.block_size or random.choice((4, 8, 16))
    span = max(LEAST_SPAN, recipe.min_prompt_tokens + LEAST_SPAN // 3)
    labels = Labels(vocab_size=recipe.vocab_size, span=span)
    num_rounds = 3
    per_round = min(8, (labels.num_owners - NUM_FAMILIES) // num_rounds)
    shape = WorkloadShape(
        num_rounds=num_rounds,
        requests_per_round=per_round,
        num_families=NUM_FAMILIES,
        block_size=block_size,
        max_output_tokens=MAX_OUTPUT_TOKENS,
    )
    knobs = tight_pool(
        random,
        longest=span + MAX_OUTPUT_TOKENS,
        block_size=block_size,
        sliding_window=recipe.sliding_window,
    )
    session = open_tight(adapter, model, knobs)
    try:
        rounds = draw_rounds(random, labels, shape, min_prompt_tokens=recipe.min_prompt_tokens)
        for requests in rounds:
            for request in requests:
                session.submit(request)
            session.run(TIMEOUT_S)
        observed = session.observations()
        seen = judge(observed, offset=recipe.offset)
        yield from _evidence(seen, labels, observed, session, name)
    finally:
        session.close()


def _evidence(
    seen: Provenance,
    labels: Labels,
    observed: Sequence[AnyObservation],
    session: Session,
    name: str,
) -> Iterator[Evidence]:
    goals = dict(seen.goals)
    goals["prefix hits"] = sum(one.count > 0 for one in observed if isinstance(one, CachedTokens))
    if isinstance(session, RecordingSession):
        plans = (record for record in session.records() if isinstance(record, PlanRecord))
        goals["preemptions"] = sum(len(record.plan.preempted) for record in plans)
    found = violations(seen, labels, observed)
    first = found[0] if found else None
    if first is not None:
        facts = (*first.witness, ("wrong_tokens", f"{len(found)} of {seen.num_tokens}"))
        first = msgspec.structs.replace(first, witness=(*facts, ("example", name)))
    yield Evidence(property_id=PROPERTY_ID, goals=goals, violation=first)
