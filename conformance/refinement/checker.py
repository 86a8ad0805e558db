"""Judges a foreign trace step by step: is this something that the specification allows?

Unlike checkers/, which hold our engine to docs/policy.md, this knows no rule of ours: tables are
taken as they are recorded, rewritten or not. It needs the whole table of each scheduled sequence in
each plan, and the tokens.
"""

from collections import Counter
from collections.abc import Sequence

from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.refinement.specification import Specification
from pagetwin.conformance.refinement.state import AbstractEngine, Follower
from pagetwin.engine.step import ScheduledSequence
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PlanRecord,
    Record,
    ResultRecord,
    SubmitRecord,
)

PROPERTY_ID = "twin.refinement"


class Refinement:
    """What one trace shows: violations, and what happened in it."""

    def __init__(self, specification: Specification) -> None:
        self.violations: list[Violation] = []
        self.goals: Counter[str] = Counter()
        self._specification = specification
        self._step = -1

    def check(self, records: Sequence[Record]) -> None:
        """Goes through the trace; it may be called once."""
        header = records[0]
        assert isinstance(header, HeaderRecord)
        engine = AbstractEngine(header)
        for record in records[1:]:
            if isinstance(record, SubmitRecord):
                engine.submit(record)
            elif isinstance(record, AbortRecord):
                engine.abort(record.request_id)
            elif isinstance(record, PlanRecord):
                self._step = record.plan.step
                self._plan(engine, record)
            elif isinstance(record, ResultRecord):
                self._step = record.step
                self._result(engine, record)
        if not engine.live and engine.num_blocks is not None:
            last = records[-1]
            if isinstance(last, ResultRecord):
                self._free_blocks(engine, last.counters.num_free_blocks, {})

    def _fail(self, message: str, **witness: object) -> None:
        self.violations.append(violation(PROPERTY_ID, self._step, message, **witness))

    def _plan(self, engine: AbstractEngine, record: PlanRecord) -> None:
        plan, limits = record.plan, engine.limits
        self.goals["steps"] += 1
        if plan.num_scheduled_tokens > limits.max_num_batched_tokens:
            self._fail("a step has more tokens than its budget", tokens=plan.num_scheduled_tokens)
        if len(plan.scheduled) > limits.max_num_seqs:
            self._fail("a step has more sequences than allowed", sequences=len(plan.scheduled))
        self._preemptions(engine, record)
        engine.preempt(record)
        self._admissions(engine, record)
        engine.tables.update({s: t for s, t in record.block_tables.items() if s in engine.live})
        self._free_blocks(engine, record.counters.num_free_blocks, engine.tables)
        engine.move_blocks(record)
        cached = {one.seq_id: one.num_cached_tokens for one in plan.introduced}
        for one in plan.scheduled:
            follower = engine.live.get(one.seq_id)
            if follower is None:
                self._fail("a sequence is scheduled that does not live", sequence=one.seq_id)
                continue
            self._range(follower, one, cached.get(one.seq_id))
            if not self._specification.shares_within_step:
                self._table(engine, follower, one, cached.get(one.seq_id, 0))
        self._writes(engine, record, cached)
        for one in plan.scheduled if self._specification.shares_within_step else ():
            if one.seq_id in engine.live:
                self._table(engine, engine.live[one.seq_id], one, cached.get(one.seq_id, 0))
        self.goals["shared blocks"] += self._num_shared(engine)

    def _preemptions(self, engine: AbstractEngine, record: PlanRecord) -> None:
        victims = [one.seq_id for one in record.plan.preempted]
        if not victims:
            return
        self.goals["preemptions"] += len(victims)
        scheduled = {one.seq_id for one in record.plan.scheduled}
        if scheduled & set(victims):
            self._fail("a step preempts what it schedules", victims=victims)
        if self._specification.preempts_last and engine.running[-len(victims) :] != victims[::-1]:
            self._fail("the victims are not the last admitted", victims=victims)
        self._justified(engine, record, victims)

    def _justified(self, engine: AbstractEngine, record: PlanRecord, victims: list[str]) -> None:
        """Preempting is allowed only if step and victims together did not fit, with those that were
        left out, where the policy leaves any out."""
        held = {block for table in engine.tables.values() for block in table}
        num_free = (engine.num_blocks or 0) - len(held)
        needed = 0
        for one in record.plan.scheduled:
            had = len(engine.tables.get(one.seq_id, ()))
            end = one.num_computed_tokens + one.num_scheduled_tokens
            needed += max(0, engine.blocks_of(end) - had)
        waited = list(victims)
        if self._specification.may_starve:
            scheduled = {one.seq_id for one in record.plan.scheduled}
            waited += [s for s in engine.tables if s not in scheduled and s not in victims]
        needed += sum(self._next_blocks(engine, seq_id) for seq_id in waited)
        if needed <= num_free:
            self._fail("a step preempts though all would have fitted", needed=needed, free=num_free)

    @staticmethod
    def _next_blocks(engine: AbstractEngine, seq_id: str) -> int:
        """The most that it may need for its next step."""
        follower, held = engine.live[seq_id], len(engine.tables.get(seq_id, ()))
        # One that has only found its prefix so far holds whole blocks of it.
        computed = follower.computed if follower.runs else held * engine.block_size
        most = min(follower.num_known, computed + engine.limits.max_num_batched_tokens)
        return max(0, engine.blocks_of(most) - held)

    def _admissions(self, engine: AbstractEngine, record: PlanRecord) -> None:
        for one in record.plan.introduced:
            follower = engine.live.get(one.seq_id)
            if follower is None or follower.runs:
                continue
            self.goals["hits"] += one.num_cached_tokens > 0
            self.goals["further samples"] += one.sample_index > 0
            if self._specification.admits_in_order and engine.waiting[:1] != [one.seq_id]:
                self._fail("an admission overtakes", admitted=one.seq_id, first=engine.waiting[:1])
            self.goals["returns"] += len(one.token_ids) > follower.request.num_prompt_tokens
            if engine.texts.of(one.token_ids) != follower.names:
                self._fail("a sequence returns with other tokens", sequence=one.seq_id)
            follower.computed = one.num_cached_tokens
            engine.admit(one.seq_id)

    def _range(self, follower: Follower, one: ScheduledSequence, num_cached: int | None) -> None:
        end = one.num_computed_tokens + one.num_scheduled_tokens
        if one.num_computed_tokens != follower.computed or one.num_scheduled_tokens < 1:
            self._fail(
                "the tokens computed leave a gap or overlap",
                sequence=one.seq_id,
                begins=one.num_computed_tokens,
                should=follower.computed,
            )
        if end > follower.num_known:
            self._fail("tokens are computed that are not known yet", sequence=one.seq_id, end=end)
        if one.samples != (end == follower.num_known):
            self._fail("a token is sampled elsewhere than at the end", sequence=one.seq_id)
        if num_cached is not None and num_cached >= follower.num_known:
            self._fail("an admission computes nothing", sequence=one.seq_id)

    def _table(
        self, engine: AbstractEngine, follower: Follower, one: ScheduledSequence, num_cached: int
    ) -> None:
        table = engine.tables.get(one.seq_id, ())
        end = one.num_computed_tokens + one.num_scheduled_tokens
        needed = engine.blocks_of(end)
        if not needed <= len(table) <= needed + self._specification.max_lookahead_blocks:
            self._fail("a table has not the blocks of its tokens", sequence=one.seq_id, end=end)
        if len(table) * engine.block_size < one.num_computed_tokens:
            return
        for position in range(one.num_computed_tokens):
            if engine.memory.read(table, position) != follower.names[position]:
                self._fail(
                    "a slot that is read holds something else",
                    sequence=one.seq_id,
                    position=position,
                    block=table[position // engine.block_size],
                    cached_tokens=num_cached,
                )
                return

    def _writes(self, engine: AbstractEngine, record: PlanRecord, cached: dict[str, int]) -> None:
        for one in record.plan.scheduled:
            follower, table = engine.live.get(one.seq_id), engine.tables.get(one.seq_id, ())
            end = one.num_computed_tokens + one.num_scheduled_tokens
            if follower is None or len(table) * engine.block_size < end or end > follower.num_known:
                continue
            first = one.num_computed_tokens // engine.block_size
            for index in range(first, engine.blocks_of(end)):
                block = table[index]
                others = [seq_id for seq_id in engine.holders(block) if seq_id != one.seq_id]
                if self._specification.shares_within_step:
                    # They hit it in this very step.
                    needed = (index + 1) * engine.block_size
                    others = [seq_id for seq_id in others if cached.get(seq_id, 0) < needed]
                if others:
                    self._fail(
                        "a block is written that others hold",
                        block=block,
                        writer=one.seq_id,
                        others=others,
                    )
            for position in range(one.num_computed_tokens, end):
                engine.memory.write(table, position, follower.names[position])
            follower.computed = end

    def _result(self, engine: AbstractEngine, record: ResultRecord) -> None:
        again = [seq_id for seq_id in record.sampled if seq_id in engine.over]
        if again:
            self._fail("a sequence that had ended got a token", sequences=again)
        engine.close(record)

    def _free_blocks(
        self, engine: AbstractEngine, num_free: int, tables: dict[str, tuple[int, ...]]
    ) -> None:
        held = {block for table in tables.values() for block in table}
        if engine.num_blocks is not None and num_free + len(held) != engine.num_blocks:
            self._fail(
                "free and held blocks do not add up",
                free=num_free,
                held=len(held),
                blocks=engine.num_blocks,
            )

    @staticmethod
    def _num_shared(engine: AbstractEngine) -> int:
        counts = Counter(block for table in engine.tables.values() for block in set(table))
        return sum(count > 1 for count in counts.values())


def refine(records: Sequence[Record], specification: Specification) -> Refinement:
    """Judges one trace, header first."""
    refinement = Refinement(specification)
    refinement.check(records)
    return refinement
