"""The rows that a model runner keeps, against a rebuild from full knowledge, plan by plan."""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import torch

from pagetwin.conformance.facts import Entry, PlanFacts
from pagetwin.conformance.ledger import Ledger
from pagetwin.conformance.lockstep import run_lockstep
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.twins import fingerprint_executor
from pagetwin.engine.device_tables import DeviceTables
from pagetwin.engine.draws import Draws
from pagetwin.engine.input_batch import InputBatch
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import ScheduledSequence, StepPlan
from pagetwin.engine.step_inputs import StepInputs, build_inputs_from_scratch, pad_decodes
from pagetwin.engine.trace import HeaderRecord, HistoryWriter, Record, ResultRecord, SubmitRecord
from pagetwin.simulator.replica import Replica

ID = "batch.rebuild"
DEVICE = "batch.device-tables"
PENALTIES: tuple[dict[str, float], ...] = (
    {},
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5},
    {"repetition_penalty": 1.5},
)
"""A device needs all tokens of whoever asks for one of these."""


def judge_batch(scenario: Scenario) -> list[Violation]:
    """Feeds the scenario's plans to an InputBatch, as a model runner does."""
    scenario = _with_penalties(scenario)
    cache, limits = scenario.cache, scenario.scheduler
    history = HistoryWriter(keep=True)
    run_lockstep(
        scenario,
        Scheduler(cache, limits),
        Replica(cache, limits),
        fingerprint_executor(scenario),
        history=history,
    )
    run = _Run(history.records)
    try:
        return list(run.judge())
    except Exception as error:  # whatever it is: the plans are valid ones
        message = f"the batch raised {type(error).__name__}: {error}"
        return [violation("life.no-crash", run.step, message)]


def _with_penalties(scenario: Scenario) -> Scenario:
    """The same requests, each with another penalty: no executor of integers heeds any."""
    requests = []
    for number, one in enumerate(scenario.requests):
        params = one.request.sampling_params
        if one.request.beam_search is None:
            params = msgspec.structs.replace(params, **PENALTIES[number % len(PENALTIES)])
        request = msgspec.structs.replace(one.request, sampling_params=params)
        requests.append(msgspec.structs.replace(one, request=request))
    return msgspec.structs.replace(scenario, requests=tuple(requests))


class _Run:
    def __init__(self, records: Sequence[Record]) -> None:
        self.step = -1
        self._records = records
        self._results = {one.step: one for one in records if isinstance(one, ResultRecord)}
        self._tokens: dict[str, list[int]] = {}
        """What the runner knows of each sequence that it has a row for."""

    def judge(self) -> Iterator[Violation]:
        header = self._records[0]
        assert isinstance(header, HeaderRecord)
        ledger = Ledger(header.cache, header.scheduler)
        # The shapes are the batch's own.
        shape = InputBatch(header.cache, header.scheduler).block_tables.shape
        self._device = DeviceTables(
            shape[0], header.scheduler.max_model_len, shape[1], torch.device("cpu")
        )
        batch = InputBatch(header.cache, header.scheduler, observers=(self._device,))
        for record in self._records[1:]:
            facts = ledger.apply(record)
            if isinstance(facts, PlanFacts):
                self.step = facts.plan.step
                yield from self._execute(facts, batch, header)

    def _execute(
        self, facts: PlanFacts, batch: InputBatch, header: HeaderRecord
    ) -> Iterator[Violation]:
        plan = facts.plan
        batch.apply(plan)
        for seq_id in plan.dropped:
            self._tokens.pop(seq_id, None)
        self._tokens |= {intro.seq_id: list(intro.token_ids) for intro in plan.introduced}
        if not plan.scheduled:
            return
        inputs = batch.build_inputs(plan.scheduled)
        tables = {entry.sequence.seq_id: entry.change.table for entry in facts.entries}
        rows = {one.seq_id: batch.find_row(one.seq_id) for one in plan.scheduled}
        expected = build_inputs_from_scratch(
            plan.scheduled,
            {seq_id: -1 if row is None else row for seq_id, row in rows.items()},
            self._tokens,
            tables,
            header.cache.block_size,
        )
        for name in ("input_ids", "positions", "slot_mapping", "query_start_loc", "seq_lens"):
            got, due = getattr(inputs, name), getattr(expected, name)
            if not np.array_equal(got, due):
                yield self._wrong(f"{name} are not the step's", got=got, due=due)
        draws = Draws.of(plan.scheduled, inputs, batch)
        yield from self._draws(plan, draws, expected.query_start_loc.tolist())
        for entry in facts.entries:
            yield from self._row(entry, batch)
        yield from self._on_device(facts.entries, batch)
        yield from self._padded(inputs)
        result = self._results.get(plan.step)
        if result is not None:
            batch.append_tokens(draws.rows, result.sampled)
            for row in draws.rows:
                token = result.sampled.get(row.seq_id)
                if token is not None and row.seq_id in self._tokens:
                    known = self._tokens[row.seq_id]
                    self._drawn(batch.find_row(row.seq_id), len(known), token)
                    known.append(token)
        yield from self._contents(batch)

    def _row(self, entry: Entry, batch: InputBatch) -> Iterator[Violation]:
        """What the sampler sees of a sequence, and the blocks that attention will read."""
        seq_id, request = entry.sequence.seq_id, entry.sequence.request
        row = batch.sampling_row(seq_id)
        output = self._tokens[seq_id][request.num_prompt_tokens :]
        if (row.seq_id, row.request, row.sample_index, list(row.output_token_ids)) != (
            seq_id,
            request,
            entry.sequence.sample_index,
            output,
        ):
            yield self._wrong("the sampler sees another sequence", seq_id=seq_id, row=row)
        place = batch.find_row(seq_id)
        table = entry.change.table
        kept = batch.block_tables[place, : len(table)].tolist()
        # Entries that the window has left behind may hold anything.
        differ = [(j, k) for j, k in zip(table, kept, strict=True) if j and j != k]
        beyond = batch.block_tables[place, len(table) :].any()
        if differ or beyond:
            yield self._wrong("a row's blocks are not its table", seq_id=seq_id, differ=differ)

    @property
    def _is_unsent(self) -> bool:
        """Whether there was no memory to send the step's changes: they come with the next one's."""
        return self.step % 5 == 3

    def _on_device(self, entries: Sequence[Entry], batch: InputBatch) -> Iterator[Violation]:
        """The tables of a device that has been sent what has changed."""
        patches = self._device.patches()
        if self._is_unsent:
            return
        self._device.apply({name: torch.from_numpy(array) for name, array in patches.items()})
        for entry in entries:
            seq_id, params = entry.sequence.seq_id, entry.sequence.request.sampling_params
            place, known = batch.find_row(seq_id), self._tokens[seq_id]
            table = self._device.block_tables[place, : len(entry.change.table)].tolist()
            if any(j and j != k for j, k in zip(entry.change.table, table, strict=True)):
                yield violation(DEVICE, self.step, "a device reads other blocks", seq_id=seq_id)
            tokens = self._device.tokens[place, : len(known)].tolist()
            if _is_penalised(params) and tokens != known:
                yield violation(
                    DEVICE, self.step, "a device knows other tokens", seq_id=seq_id, tokens=tokens
                )

    def _drawn(self, place: int | None, position: int, token: int) -> None:
        """A device writes what it draws itself; what the host draws is sent with the next step."""
        assert place is not None
        if self.step % 2 and not self._is_unsent:
            self._device.tokens[place, position] = token
        else:
            self._device.set_tokens(place, position, [token])

    def _padded(self, inputs: StepInputs) -> Iterator[Violation]:
        """Padding for a graph leaves the step as it is, writes no slot and reads no key."""
        if inputs.num_tokens != inputs.num_seqs:
            return
        size = inputs.num_seqs
        padded = pad_decodes(inputs, size + 3)
        for name in ("input_ids", "positions", "slot_mapping", "seq_lens", "rows"):
            if not np.array_equal(getattr(padded, name)[:size], getattr(inputs, name)):
                yield violation(DEVICE, self.step, f"padding changes {name}")
        if (padded.slot_mapping[size:] != -1).any() or padded.seq_lens[size:].any():
            yield violation(DEVICE, self.step, "padding writes or reads", padded=padded)
        if padded.query_start_loc.tolist() != list(range(size + 4)):
            yield violation(DEVICE, self.step, "padding is not one row each", padded=padded)

    def _draws(self, plan: StepPlan, draws: Draws, starts: Sequence[int]) -> Iterator[Violation]:
        """Who draws, and from the hidden state of which token."""
        due: list[tuple[str, int]] = []
        for place, one in enumerate(plan.scheduled):
            if one.samples:
                due += [(seq_id, starts[place + 1] - 1) for seq_id in self._drawing(one)]
        got = [
            (row.seq_id, int(draws.last_tokens[place]))
            for row, place in zip(draws.rows, draws.logits_rows, strict=True)
        ]
        if got != due:
            yield self._wrong("tokens are drawn from other rows", got=got, due=due)

    def _drawing(self, one: ScheduledSequence) -> list[str]:
        """The sequence, or all samples of a group whose prompt ends here."""
        request_id, _, index = one.seq_id.rpartition("/")
        request = next(r for r in self._requests() if r.request_id == request_id)
        if len(self._tokens[one.seq_id]) > request.num_prompt_tokens:
            return [one.seq_id]
        if request.beam_search is not None:
            return [one.seq_id]
        others = range(1, request.num_samples) if index == "0" else ()
        return [one.seq_id, *(sequence_id(request_id, i) for i in others)]

    def _contents(self, batch: InputBatch) -> Iterator[Violation]:
        kept = {seq_id: list(tokens) for seq_id, (tokens, _) in batch.contents().items()}
        if kept != self._tokens:
            names = [
                seq_id
                for seq_id in sorted({*kept, *self._tokens})
                if kept.get(seq_id) != self._tokens.get(seq_id)
            ]
            yield self._wrong("rows hold other tokens than their sequences", seq_ids=names)
        try:
            batch.check_invariants()
        except AssertionError as error:
            yield self._wrong(f"a row that nobody has, or its tail, is not empty: {error}")

    def _requests(self) -> Iterator[Request]:
        for record in self._records:
            if isinstance(record, SubmitRecord):
                yield record.request

    def _wrong(self, message: str, **witness: object) -> Violation:
        return violation(ID, self.step, message, **witness)


def _is_penalised(params: SamplingParams) -> bool:
    neutral = SamplingParams()
    names = {name for penalty in PENALTIES for name in penalty}
    return any(getattr(params, name) != getattr(neutral, name) for name in names)
