"""The ledger: who holds which block, and how far each sequence is, rebuilt from a history.

It reads plans and results as facts and keeps books of its own. It decides nothing: it does not
know how a scheduler chooses, only what the events mean (docs/policy.md P3 to P5).
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from pagetwin.conformance.facts import (
    Entry,
    Facts,
    LedgerSequence,
    PlanFacts,
    ResultFacts,
    Row,
    State,
    Victim,
)
from pagetwin.conformance.holdings import Holdings
from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.step import BeamSelection, Preemption, ScheduledSequence, StepPlan
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PlanRecord,
    PreemptRecord,
    Record,
    ResultRecord,
    SubmitRecord,
)


class HistoryBroken(Exception):
    """The history cannot be followed any further; carries the violation that says why."""

    def __init__(self, found: Violation) -> None:
        super().__init__(str(found))
        self.found = found


def walk(records: Iterable[Record]) -> Iterator[tuple[Record, "Ledger", Facts]]:
    """Applies the records one by one: yields each, the ledger after it, and its facts.

    Raises HistoryBroken where a record names a sequence that cannot be meant.
    """
    ledger: Ledger | None = None
    for record in records:
        if isinstance(record, HeaderRecord):
            ledger = Ledger(record.cache, record.scheduler)
        elif ledger is None:
            raise TraceError("the history has no header; its first record must say what was run")
        else:
            yield record, ledger, ledger.apply(record)


class Ledger:
    """Books over sequences and blocks; `apply` takes the records in their order."""

    def __init__(self, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
        self.cache = cache
        self.scheduler = scheduler
        self.sequences: dict[str, LedgerSequence] = {}
        self.ended: dict[str, LedgerSequence] = {}
        self.running: list[str] = []
        """In order (docs/policy.md P1.4, P3.1)."""
        self.holdings = Holdings(cache)
        self.steps_in_flight: dict[int, tuple[StepPlan, list[Row]]] = {}
        self.rows: set[str] = set()
        """Sequences that the executor holds a row for."""
        self.totals: Counter[str] = Counter()
        self.to_preempt: set[str] = set()
        """Requests for which a forced preemption is due (docs/policy.md P3.5)."""
        self.step = -1
        self._leaving: dict[int, list[LedgerSequence]] = {}

    def in_state(self, state: State) -> list[LedgerSequence]:
        return [seq for seq in self.sequences.values() if seq.state == state]

    def samples_of(self, request_id: str) -> list[LedgerSequence]:
        """The request's live sequences in sample order."""
        mine = [s for s in self.sequences.values() if s.request.request_id == request_id]
        return sorted(mine, key=lambda seq: seq.sample_index)

    def is_id_in_use(self, request_id: str) -> bool:
        """By a live request, or by one whose blocks a step in flight still holds (P5.3c)."""
        leaving = (one for ended in self._leaving.values() for one in ended)
        return any(
            one.request.request_id == request_id for one in (*self.sequences.values(), *leaving)
        )

    def apply(self, record: Record) -> Facts:
        if isinstance(record, SubmitRecord):
            self._submit(record.request)
        elif isinstance(record, AbortRecord):
            self._abort(record)
        elif isinstance(record, PreemptRecord):
            self._force(record)
        elif isinstance(record, PlanRecord):
            self.step = record.plan.step
            return self._plan(record.plan)
        elif isinstance(record, ResultRecord):
            self.step = record.step
            return self._result(record)
        return None

    def broken(self, message: str, **witness: object) -> HistoryBroken:
        return HistoryBroken(violation("history.readable", self.step, message, **witness))

    def _submit(self, request: Request) -> None:
        seq_id = sequence_id(request.request_id, 0)
        if self.samples_of(request.request_id):
            raise self.broken("a live request was submitted again", request=request.request_id)
        self.sequences[seq_id] = LedgerSequence(
            seq_id, request, 0, list(request.prompt_token_ids), grouped=request.num_samples > 1
        )

    def _abort(self, record: AbortRecord) -> None:
        mine = self.samples_of(record.request_id)
        if bool(mine) != record.found:
            raise self.broken(
                "an abort found a request that does not live, or missed one that does",
                request=record.request_id,
                found=record.found,
            )
        self.totals["aborts"] += bool(mine)
        for sequence in mine:
            self._end(sequence)

    def _force(self, record: PreemptRecord) -> None:
        runs = any(one.state == "running" for one in self.samples_of(record.request_id))
        if runs != record.found:
            raise self.broken(
                "a forced preemption found a request that does not run, or missed one that does",
                request=record.request_id,
                found=record.found,
            )
        self.to_preempt.update([record.request_id] if runs else [])

    def _plan(self, plan: StepPlan) -> PlanFacts:
        in_flight = tuple(self.steps_in_flight)
        forced = tuple(
            seq_id
            for seq_id in reversed(self.running)
            if self.sequences[seq_id].request.request_id in self.to_preempt
        )
        self.to_preempt.clear()
        held_before = Counter(self.holdings.device)
        saved: dict[int, int] = {}
        named = [*forced, *[""] * len(plan.preempted)]
        victims = tuple(
            self._preempt(plan, one, by_force, saved)
            for one, by_force in zip(plan.preempted, named, strict=False)
        )
        self.rows.difference_update(plan.dropped)
        self.rows.update(intro.seq_id for intro in plan.introduced)
        entries = tuple(self._schedule(plan, one, held_before) for one in plan.scheduled)
        rows = [Row(entry.scheduled, entry.sequence, entry.change.table) for entry in entries]
        self.steps_in_flight[plan.step] = (plan, rows)
        return PlanFacts(plan, in_flight, victims, forced, entries)

    def _preempt(
        self, plan: StepPlan, preempted: Preemption, by_force: str, saved: dict[int, int]
    ) -> Victim:
        sequence = self._live(preempted.seq_id)
        before = sequence.state
        due = by_force or self._due_victim()
        has_row = sequence.seq_id in self.rows
        pairs: tuple[tuple[int, int], ...] = ()
        if preempted.mode == "swap":
            pairs = self.holdings.save(plan.swap_outs, sequence, saved)
            sequence.state = "swapped"
        else:
            sequence.state = "waiting"
            sequence.computed = 0
        self.holdings.drop_table(sequence)
        if sequence.seq_id in self.running:
            self.running.remove(sequence.seq_id)
        sequence.preempted_before = True
        self.totals[f"preemptions_{preempted.mode}"] += 1
        return Victim(sequence, preempted.mode, before, due, has_row, pairs)

    def _due_victim(self) -> str:
        """A resting beam whose siblings do not all run, else the last in order."""
        for seq_id in reversed(self.running):
            sequence = self.sequences[seq_id]
            resting = sequence.computed == len(sequence.tokens)
            if resting and sequence.request.beam_search is not None:
                beams = self.samples_of(sequence.request.request_id)
                if any(beam.state != "running" for beam in beams):
                    return seq_id
        return self.running[-1] if self.running else ""

    def _schedule(self, plan: StepPlan, one: ScheduledSequence, held: Counter[int]) -> Entry:
        sequence = self._live(one.seq_id)
        came_from, num_known = sequence.state, sequence.num_known
        intro = next((i for i in plan.introduced if i.seq_id == one.seq_id), None)
        cached = intro.num_cached_tokens if intro is not None else 0
        computed = sequence.computed
        if came_from == "running":
            change = self.holdings.extend(sequence, one, intro, held)
        elif intro is None:
            raise self.broken("a sequence was scheduled without its table", seq_id=one.seq_id)
        elif came_from == "swapped":
            change = self.holdings.restore(sequence, intro)
        else:
            computed = cached
            change = self.holdings.admit(plan, sequence, intro)
            self.totals["prefix_hit_tokens"] += cached
            if self.cache.enable_prefix_caching and not _wants_whole_prompt(sequence):
                self.totals["prefix_queries"] += len(intro.token_ids)
            self.totals["partial_hits"] += cached % self.cache.block_size > 0
        self.totals["cow_copies"] += len(change.replaced)
        self._advance(plan, one, sequence)
        tokens = intro.token_ids if intro is not None else None
        return Entry(one, sequence, came_from, computed, num_known, tokens, cached, change)

    def _advance(self, plan: StepPlan, one: ScheduledSequence, sequence: LedgerSequence) -> None:
        if sequence.state != "running":
            sequence.state = "running"
            self.running.append(sequence.seq_id)
            if self.scheduler.policy == "priority":
                self.running.sort(key=lambda seq_id: priority_key(self.sequences[seq_id]))
        sequence.computed = one.num_computed_tokens + one.num_scheduled_tokens
        sequence.in_steps.append(plan.step)
        if one.samples and not sequence.grouped and sequence.request.beam_search is None:
            sequence.placeholders += 1

    def _result(self, record: ResultRecord) -> ResultFacts:
        if record.step not in self.steps_in_flight:
            raise self.broken("a result came for a step that is not in flight")
        plan, planned = self.steps_in_flight.pop(record.step)
        for sequence in self._leaving.pop(record.step, []):
            self.holdings.drop_table(sequence)
        self.holdings.unpin(record.step)
        ends = {one.seq_id: None for one in record.finished}
        rows: list[Row] = []
        released: list[int] = []
        failed: set[str] = set()
        for one in planned:
            request = one.sequence.request
            ended = self.sequences.get(one.scheduled.seq_id) is not one.sequence
            # A failed beam ends its search at its own place (docs/policy.md P5.1c).
            ended |= request.request_id in failed
            if request.beam_search is not None and one.scheduled.samples and not ended:
                failed.update([request.request_id] if one.scheduled.seq_id in record.failed else [])
            rows.append(Row(one.scheduled, one.sequence, one.table, ended))
            if record.step in one.sequence.in_steps:
                one.sequence.in_steps.remove(record.step)
            if not ended:
                for sequence in self._take_tokens(rows[-1], record):
                    if sequence.seq_id not in ends:
                        released += self._release_window(sequence, one.end)
        for selection in record.selections:
            if not selection.finished:
                self._select(selection)
        for seq_id in ends:
            self._end(self._live(seq_id))
            self.totals["finished"] += 1
        return ResultFacts(plan, tuple(rows), tuple(released))

    def _take_tokens(self, row: Row, record: ResultRecord) -> list[LedgerSequence]:
        """Forks the row's group if it forks now, and appends tokens; returns its samples."""
        parent = row.sequence
        children = [child for one, child in record.forked if one == parent.seq_id]
        samples = [parent]
        for child_id in children:
            samples.append(self._fork(parent, samples[-1], child_id))
        if children:
            parent.grouped = False
        for sequence in samples:
            token = record.sampled.get(sequence.seq_id)
            if token is not None and row.scheduled.samples:
                sequence.tokens.append(token)
                sequence.placeholders = max(0, sequence.placeholders - 1)
        return samples

    def _fork(
        self, parent: LedgerSequence, before: LedgerSequence, child_id: str
    ) -> LedgerSequence:
        """Makes a child, which stands in running directly after the sample before it."""
        child = self._copy(parent, int(child_id.rpartition("/")[2]), list(parent.tokens))
        self.running.insert(self.running.index(before.seq_id) + 1, child.seq_id)
        return child

    def _copy(self, parent: LedgerSequence, index: int, tokens: list[int]) -> LedgerSequence:
        """A running sequence with the parent's table, each block with one holder more."""
        request = parent.request
        copy = LedgerSequence(
            sequence_id(request.request_id, index),
            request,
            index,
            tokens,
            state="running",
            computed=parent.computed,
            table=list(parent.table),
        )
        self.holdings.hold(copy.table)
        self.sequences[copy.seq_id] = copy
        return copy

    def _select(self, selection: BeamSelection) -> None:
        """Replaces a group's beams by the selected ones (docs/policy.md P2.8b)."""
        old = self.samples_of(selection.request_id)
        if not old:
            return
        resting = [beam.seq_id for beam in old if beam.state != "running"]
        if resting:
            raise self.broken("a selection came while a beam was not running", beams=resting)
        # Beams that returned earlier than beam 0 may stand before it; they leave as well.
        before = self.running[: self.running.index(old[0].seq_id)]
        place = sum(self.sequences[seq_id] not in old for seq_id in before)
        for beam in old:
            self.running.remove(beam.seq_id)
            del self.sequences[beam.seq_id]
        parents = {beam.sample_index: beam for beam in old}
        pairs = zip(selection.parents, selection.token_ids, strict=True)
        for index, (parent, token) in enumerate(pairs):
            if parent not in parents:
                raise self.broken("a selection names a beam that does not live", beam=parent)
            chosen = self._copy(parents[parent], index, [*parents[parent].tokens, token])
            self.running.insert(place + index, chosen.seq_id)
        for beam in old:
            self.holdings.drop_table(beam)

    def _release_window(self, sequence: LedgerSequence, computed: int) -> list[int]:
        """Releases what is outside the window after the step (docs/policy.md P4.7)."""
        if not self.cache.sliding_window:
            return []
        outside = max(0, computed - self.cache.sliding_window + 1) // self.cache.block_size
        released = [block for block in sequence.table[:outside] if block]
        self.holdings.drop(released)
        kept = sequence.table[outside:]
        sequence.table[:outside] = [0] * (len(sequence.table) - len(kept))
        return released

    def _end(self, sequence: LedgerSequence) -> None:
        """Takes the sequence off the books; its blocks stay until its steps have returned."""
        del self.sequences[sequence.seq_id]
        self.ended[sequence.seq_id] = sequence
        request_id = sequence.request.request_id
        if request_id in self.to_preempt and not self.samples_of(request_id):
            self.to_preempt.remove(request_id)
        if sequence.seq_id in self.running:
            self.running.remove(sequence.seq_id)
        self.holdings.drop_host(sequence)
        if sequence.in_steps:
            self._leaving.setdefault(sequence.in_steps[-1], []).append(sequence)
        else:
            self.holdings.drop_table(sequence)

    def _live(self, seq_id: str) -> LedgerSequence:
        sequence = self.sequences.get(seq_id)
        if sequence is None:
            property_id = "life.no-work-after-end" if seq_id in self.ended else "history.readable"
            message = "a record names a sequence that does not live"
            raise HistoryBroken(violation(property_id, self.step, message, seq_id=seq_id))
        return sequence


def _wants_whole_prompt(sequence: LedgerSequence) -> bool:
    """Its prompt is computed anew, without a look-up (docs/policy.md P2.4)."""
    return sequence.request.sampling_params.prompt_logprobs is not None


def priority_key(sequence: LedgerSequence) -> tuple[int, float, str, int]:
    """docs/policy.md P1.4."""
    request = sequence.request
    return (request.priority, request.arrival_s, request.request_id, sequence.sample_index)
