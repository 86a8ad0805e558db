"""Scheduler: budgets, ranges, order, stop conditions, and the books over them."""

from collections.abc import Iterator

from pagetwin.conformance.facts import Entry, Facts, PlanFacts, ResultFacts
from pagetwin.conformance.ledger import Ledger
from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.step import FinishedSequence
from pagetwin.engine.trace import HeaderRecord, Record, RefuseRecord, ResultRecord


def check_record(record: Record, ledger: Ledger, facts: Facts) -> Iterator[Violation]:
    """Judges life.stops and the properties sched.* but what admissions of the waiting owe each
    other (checkers/waiting.py); life.no-work-after-end shows as a history
    that cannot be followed."""
    if isinstance(facts, PlanFacts):
        yield from _budget(facts, ledger)
        yield from _shares(facts, ledger)
        yield from _order(facts, ledger)
        yield from _admission_order(facts, ledger)
    elif isinstance(facts, ResultFacts) and isinstance(record, ResultRecord):
        yield from _tokens_and_ends(record, facts, ledger)
    yield from _books(record, ledger)


def _budget(facts: PlanFacts, ledger: Ledger) -> Iterator[Violation]:
    limits, step = ledger.scheduler, facts.plan.step
    tokens = facts.plan.num_scheduled_tokens
    weight = sum(sequence.weight for sequence in ledger.in_state("running"))
    if tokens > limits.max_num_batched_tokens or weight > limits.max_num_seqs:
        yield violation(
            "sched.budget", step, "a step is too large", tokens=tokens, sequences=weight
        )
    if not facts.entries and not facts.victims:
        yield violation("sched.progress", step, "a plan neither schedules nor preempts")
    if len(facts.in_flight) > limits.async_scheduling:
        yield violation(
            "sched.one-in-flight",
            step,
            "a plan was made with too many in flight",
            in_flight=facts.in_flight,
        )


def _shares(facts: PlanFacts, ledger: Ledger) -> Iterator[Violation]:
    """Each sequence gets what docs/policy.md P2.1 and P2.4 give it, where its blocks end."""
    budget = ledger.scheduler.max_num_batched_tokens
    for entry in facts.entries:
        one = entry.scheduled
        start, share = one.num_computed_tokens, one.num_scheduled_tokens
        allowed = _share(entry, budget, ledger)
        if share != allowed:
            yield violation(
                "sched.budget",
                ledger.step,
                "a sequence's share is not what the budget rules give it",
                seq_id=one.seq_id,
                share=share,
                allowed=allowed,
            )
        if start != entry.computed_before or start + share > ledger.scheduler.max_model_len:
            yield violation(
                "sched.contiguous",
                ledger.step,
                "a sequence's range does not start where it stopped, or is too long",
                seq_id=one.seq_id,
                start=start,
                share=share,
                computed=entry.computed_before,
            )
        if one.samples != (start + share == entry.num_known):
            yield violation(
                "sched.samples-at-end",
                ledger.step,
                "sampling and reaching the last token do not go together",
                seq_id=one.seq_id,
                samples=one.samples,
                end=start + share,
                tokens=entry.num_known,
            )
        budget -= share


def _share(entry: Entry, budget: int, ledger: Ledger) -> int:
    limits = ledger.scheduler
    start = entry.scheduled.num_computed_tokens
    behind = entry.num_known - start
    share = min(behind, budget, limits.max_model_len - start)
    if behind > 1 and limits.long_prefill_token_threshold:
        share = min(share, limits.long_prefill_token_threshold)
    if behind > 1 and not limits.enable_chunked_prefill and share < behind:
        return 0
    return share


def _order(facts: PlanFacts, ledger: Ledger) -> Iterator[Violation]:
    """Running ones in order, then swap-ins, then admissions; each once."""
    rank = {"running": 0, "swapped": 1, "waiting": 2}
    seq_ids = [entry.scheduled.seq_id for entry in facts.entries]
    ranks = [rank[entry.came_from] for entry in facts.entries]
    ran = [e.scheduled.seq_id for e in facts.entries if e.came_from == "running"]
    expected = [seq_id for seq_id in ledger.running if seq_id in ran]
    known_order = ledger.scheduler.policy in ("fcfs", "priority")
    if len(set(seq_ids)) != len(seq_ids) or ranks != sorted(ranks):
        yield violation(
            "sched.once-per-step", ledger.step, "a plan is out of order", scheduled=seq_ids
        )
    elif known_order and ran != expected:
        yield violation(
            "sched.once-per-step",
            ledger.step,
            "running sequences are out of order",
            scheduled=ran,
            expected=expected,
        )
    introduced = [intro.seq_id for intro in facts.plan.introduced]
    if introduced != [seq_id for seq_id in seq_ids if seq_id in introduced]:
        yield violation(
            "sched.once-per-step",
            ledger.step,
            "introductions are out of order",
            introduced=introduced,
        )


def _admission_order(facts: PlanFacts, ledger: Ledger) -> Iterator[Violation]:
    """Who is overtaken among the waiting: checkers/waiting.py."""
    admitted = [entry.sequence for entry in facts.entries if entry.came_from == "waiting"]
    swapped = ledger.in_state("swapped")
    if admitted and swapped:
        yield violation(
            "sched.order",
            ledger.step,
            "a waiting sequence overtook a swapped-out one",
            admitted=[sequence.seq_id for sequence in admitted],
            swapped=[sequence.seq_id for sequence in swapped],
        )


def _tokens_and_ends(
    record: ResultRecord, facts: ResultFacts, ledger: Ledger
) -> Iterator[Violation]:
    if any(step < record.step for step in ledger.steps_in_flight):
        yield violation("sched.one-in-flight", record.step, "a result overtook an earlier step's")
    expected: list[FinishedSequence] = []
    for row in facts.rows:
        request = row.sequence.request
        if row.ended_before or not row.scheduled.samples or request.beam_search is not None:
            continue
        parent = row.sequence.seq_id
        for seq_id in [parent, *(child for one, child in record.forked if one == parent)]:
            if seq_id in record.failed:
                expected.append(FinishedSequence(seq_id, "error", record.failed[seq_id]))
                continue
            if seq_id not in record.sampled:
                yield violation(
                    "sched.samples-at-end", record.step, "a due token is missing", seq_id=seq_id
                )
                continue
            end = expected_end(seq_id, record.stop_strings.get(seq_id), ledger)
            if end is not None:
                expected.append(end)
    beams = _beam_requests(facts)
    ended = [one for one in record.finished if _request_id(one.seq_id) not in beams]
    if ended != expected:
        yield violation(
            "life.stops",
            record.step,
            "the sequences that ended are not those at a stop condition",
            finished=ended,
            expected=expected,
        )
    yield from _beam_ends(record, facts, ledger)


def _beam_ends(record: ResultRecord, facts: ResultFacts, ledger: Ledger) -> Iterator[Violation]:
    """A beam search ends when its selection says so, or when one of its beams failed."""
    searches = _beam_requests(facts)
    reasons: dict[str, tuple[str, str | None]] = {
        one.request_id: ("stop", None) for one in record.selections if one.finished
    }
    for row in facts.rows:
        seq_id = row.scheduled.seq_id
        if seq_id in record.failed and row.scheduled.samples and not row.ended_before:
            reasons[_request_id(seq_id)] = ("error", record.failed[seq_id])
    wrong = [
        one
        for one in record.finished
        if _request_id(one.seq_id) in searches
        and (one.reason, one.stop_reason) != reasons.get(_request_id(one.seq_id))
    ]
    for request_id in searches:
        if (request_id in reasons) == bool(ledger.samples_of(request_id)) or wrong:
            yield violation(
                "life.stops",
                record.step,
                "a beam search ended without cause or otherwise, or goes on after its end",
                request_id=request_id,
                finished=wrong,
            )


def _beam_requests(facts: ResultFacts) -> dict[str, None]:
    """The beam searches among the rows that count."""
    requests = [row.sequence.request for row in facts.rows if not row.ended_before]
    return {one.request_id: None for one in requests if one.beam_search is not None}


def _request_id(seq_id: str) -> str:
    return seq_id.rpartition("/")[0]


def expected_end(seq_id: str, stop_string: str | None, ledger: Ledger) -> FinishedSequence | None:
    """The first stop condition that the newest token meets, by docs/policy.md P5.1a."""
    sequence = ledger.sequences.get(seq_id) or ledger.ended[seq_id]
    request, limits = sequence.request, ledger.scheduler
    params = request.sampling_params
    num_tokens = len(sequence.tokens)
    num_output = num_tokens - request.num_prompt_tokens
    newest = sequence.tokens[-1]
    if num_output > params.min_tokens:
        if newest in request.eos_token_ids and not params.ignore_eos:
            return FinishedSequence(seq_id, "stop")
        if newest in params.stop_token_ids:
            return FinishedSequence(seq_id, "stop", newest)
        if stop_string is not None:
            return FinishedSequence(seq_id, "stop", stop_string)
    blocks = -(-(num_tokens + limits.num_lookahead_slots) // ledger.cache.block_size)
    if (
        (params.max_tokens is not None and num_output >= params.max_tokens)
        or num_tokens >= limits.max_model_len
        or blocks > ledger.cache.num_blocks - 1
    ):
        return FinishedSequence(seq_id, "length")
    return None


def _books(record: Record, ledger: Ledger) -> Iterator[Violation]:
    if isinstance(record, HeaderRecord | RefuseRecord):
        return
    expected = {
        "num_waiting": len(ledger.in_state("waiting")),
        "num_running": sum(sequence.weight for sequence in ledger.in_state("running")),
        "num_swapped": len(ledger.in_state("swapped")),
    }
    for name in ("cow_copies", "preemptions_recompute", "preemptions_swap", "finished", "aborts"):
        expected[name] = ledger.totals[name]
    for name, value in expected.items():
        counted = getattr(record.counters, name)
        if counted != value:
            yield violation(
                "sched.counters",
                ledger.step,
                f"{name} is not what the events make",
                counted=counted,
                expected=value,
            )
