"""twin.refinement: an engine's own steps, held against what its policy allows."""

from collections.abc import Iterator
from itertools import count
from random import Random

import msgspec

from pagetwin.conformance.adapters.protocol import Adapter, EngineInfo, RecordingSession
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.tight_pool import open_tight, tight_pool
from pagetwin.conformance.provenance.labels import Labels
from pagetwin.conformance.provenance.workload import WorkloadShape, draw_rounds
from pagetwin.conformance.refinement.checker import PROPERTY_ID, refine
from pagetwin.conformance.refinement.specification import specification_of
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.request import Request
from pagetwin.engine.trace import HeaderRecord, PlanRecord, Record

LABELS = Labels(vocab_size=4096, span=140)
SHAPE = WorkloadShape(num_rounds=3, requests_per_round=8)
NUM_SPECIAL_TOKENS = 3
TIMEOUT_S = 300.0


class RefinementExperiment:
    """Each example is one session: requests that share prefixes, in a pool too small for them."""

    id = "refinement"
    judges: tuple[str, ...] = (PROPERTY_ID,)
    needs = frozenset({Flag.TOKEN_PROMPT, Flag.STEP_TRACE, Flag.BLOCK_TABLES})
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        info = adapter.describe()
        for example in count():
            if not budget.allows(example):
                return
            records = _session(adapter, info, Random(f"{seed}/{example}"))
            yield _judge(records, example)


def _session(adapter: Adapter, info: EngineInfo, random: Random) -> list[Record]:
    """The steps of one session."""
    block_size = info.block_size or random.choice((4, 8, 16))
    shape = msgspec.structs.replace(SHAPE, block_size=block_size)
    longest = LABELS.span + shape.max_output_tokens
    # A partial hit holds the block that it copies from: in no table, and not free.
    knobs = tight_pool(random, longest=longest, block_size=block_size, enable_partial_hits=False)
    several = specification_of(info.name).samples_are_requests
    session = open_tight(adapter, None, knobs)
    assert isinstance(session, RecordingSession), "the adapter claims a trace of its steps"
    try:
        for requests in draw_rounds(random, LABELS, shape, min_prompt_tokens=2):
            for request in requests:
                request = _within(request, info.vocab_size or LABELS.vocab_size)
                session.submit(_sampled(request) if several and random.random() < 0.25 else request)
            session.run(TIMEOUT_S)
        return list(session.records())
    finally:
        session.close()


def _within(request: Request, vocab_size: int) -> Request:
    """The request in a smaller vocabulary, where there is one."""
    left = vocab_size - NUM_SPECIAL_TOKENS
    tokens = tuple(NUM_SPECIAL_TOKENS + token % left for token in request.prompt_token_ids)
    return msgspec.structs.replace(request, prompt_token_ids=tokens)


def _sampled(request: Request) -> Request:
    """Two samples of it."""
    params = msgspec.structs.replace(request.sampling_params, n=2, temperature=1.0)
    return msgspec.structs.replace(request, sampling_params=params)


def _judge(records: list[Record], example: int) -> Evidence:
    header = records[0]
    assert isinstance(header, HeaderRecord)
    plans = [record for record in records if isinstance(record, PlanRecord)]
    if header.cache.sliding_window or not any(plan.block_tables for plan in plans):
        reason = "this model's layers are windowed: a table does not stand for all positions"
        return Evidence(property_id=PROPERTY_ID, undecided=reason)
    specification = specification_of(header.engine)
    seen = refine(records, specification)
    first = next(iter(seen.violations), None)
    if first is not None:
        facts = (("specification", specification.id), ("example", str(example)))
        first = msgspec.structs.replace(first, witness=(*first.witness, *facts))
    return Evidence(property_id=PROPERTY_ID, goals=dict(seen.goals), violation=first)
