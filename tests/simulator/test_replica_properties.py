"""Whatever the knobs and the requests, the replica keeps its books and every byte of KV memory."""

import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import ScheduledSequence, StepPlan, StepResult
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.sequence import TwinSequence
from pagetwin.simulator.state import State
from pagetwin.simulator.token_source import ScriptedTokens, hashed_token

T = TypeVar("T")

EOS = 2
MAX_STEPS = 3000
NUM_SEEDS = 500


class Pick(Protocol):
    """Picks one of the options."""

    def __call__(self, options: Sequence[T], /) -> T: ...


@dataclass
class Case:
    """A configuration, requests, and the order of events; then it is run to the end."""

    cache: CacheConfig
    scheduler: SchedulerConfig
    requests: list[Request]
    events: list[tuple[str, int]]
    fail_every: int = 0
    """One in so many due tokens, on average, fails; 0: none."""


@dataclass
class Row:
    token_ids: list[int]
    table: list[int]


class CheckingExecutor:
    """Keeps, in place of K/V, the tokens that each slot stands for, and checks every read."""

    def __init__(self, case: Case) -> None:
        self.block_size = case.cache.block_size
        self.window = case.cache.sliding_window
        self.lookahead = case.scheduler.num_lookahead_slots
        self.tokens = ScriptedTokens(
            lambda request, sample, position: hashed_token(request, sample, position) % 3,
            max_model_len=case.scheduler.max_model_len,
        )
        self.device: dict[tuple[int, int], tuple[int, ...]] = {}
        self.host: dict[tuple[int, int], tuple[int, ...]] = {}
        self.rows: dict[str, Row] = {}
        self.fail_every = case.fail_every
        self.next_step = 0

    def execute(self, plan: StepPlan) -> StepResult:
        assert plan.step == self.next_step
        self.next_step += 1
        for swap in plan.swap_outs:
            self._copy(self.device, swap.source, self.host, swap.destination)
        for swap in plan.swap_ins:
            self._copy(self.host, swap.source, self.device, swap.destination)
        for copy in plan.copies:
            self._copy(self.device, copy.source, self.device, copy.destination)
        assert list(plan.dropped) == sorted(set(plan.dropped))
        for seq_id in plan.dropped:
            del self.rows[seq_id]  # only rows that the executor holds are dropped
        introduced = [row.seq_id for row in plan.introduced]
        assert introduced == [r.seq_id for r in plan.scheduled if r.seq_id in introduced]
        for new in plan.introduced:
            self.rows[new.seq_id] = Row(list(new.token_ids), list(new.block_ids))
        for row in plan.scheduled:
            if row.seq_id not in introduced:
                table = self.rows[row.seq_id].table
                for index, block_id in row.replaced_blocks:
                    table[index] = block_id
                table.extend(row.new_block_ids)
            else:
                assert not row.new_block_ids
                assert not row.replaced_blocks
        self._write(plan)
        for row in plan.scheduled:
            self._read(row.seq_id, row.num_computed_tokens + row.num_scheduled_tokens)
        result = self.tokens.execute(plan)
        for seq_id, token_id in result.sampled.items():
            if seq_id in self.rows:
                self.rows[seq_id].token_ids.append(token_id)
        return self._with_failures(plan, result) if self.fail_every else result

    def _with_failures(self, plan: StepPlan, result: StepResult) -> StepResult:
        """Fails some samples and beams; a row of theirs in flight goes on with the token."""
        due = dict.fromkeys([*(row.seq_id for row in plan.scheduled if row.samples)])
        due |= dict.fromkeys(result.sampled)
        failed = {
            seq_id: f"{seq_id} fails in step {plan.step}"
            for seq_id in due
            if zlib.crc32(f"{plan.step}:{seq_id}".encode()) % self.fail_every == 0
        }
        requests = {seq_id.rpartition("/")[0] for seq_id in failed}
        return msgspec.structs.replace(
            result,
            sampled={s: token for s, token in result.sampled.items() if s not in failed},
            failed=failed,
            selections=tuple(s for s in result.selections if s.request_id not in requests),
        )

    def _copy(self, source: Any, source_id: int, destination: Any, destination_id: int) -> None:
        for offset in range(self.block_size):
            destination[destination_id, offset] = source.get((source_id, offset), ())

    def _write(self, plan: StepPlan) -> None:
        written: set[tuple[int, int]] = set()
        for row in plan.scheduled:
            held = self.rows[row.seq_id]
            start, end = row.num_computed_tokens, row.num_computed_tokens + row.num_scheduled_tokens
            assert row.samples == (end == len(held.token_ids))
            for position in range(start, end + self.lookahead):
                slot = (held.table[position // self.block_size], position % self.block_size)
                assert slot[0] != 0, "the null block is written"
                assert slot not in written, "two sequences write one slot"
                written.add(slot)
                # Lookahead slots get garbage.
                self.device[slot] = tuple(held.token_ids[: position + 1]) if position < end else ()

    def _read(self, seq_id: str, end: int) -> None:
        row = self.rows[seq_id]
        start = max(0, end - self.window) if self.window else 0
        for position in range(start, end):
            slot = (row.table[position // self.block_size], position % self.block_size)
            assert self.device[slot] == tuple(row.token_ids[: position + 1]), (seq_id, position)


@dataclass
class Run:
    plans: list[StepPlan] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


def run(case: Case) -> Run:
    replica, executor = Replica(case.cache, case.scheduler), CheckingExecutor(case)
    done, in_flight = Run(), list[StepPlan]()
    accepted: set[str] = set()
    for event, number in case.events:
        request = case.requests[number % len(case.requests)]
        if event == "submit" and request.request_id not in accepted:
            submit(replica, request, accepted, done)
        elif event == "abort":
            found = replica.abort_request(request.request_id)
            done.seen["abort in flight"] += found and bool(in_flight)
            assert not replica.abort_request(request.request_id)
        elif event == "preempt":
            before = replica.counters()
            found = replica.preempt_request(request.request_id)
            done.seen["forced in flight"] += found and bool(in_flight)
            done.seen["nothing to force"] += not found
            assert replica.counters() == before  # P3.5a
        elif event == "reset":
            done.seen["reset"] += replica.reset_prefix_cache()
        else:
            advance(replica, executor, in_flight, done)
        replica.check_invariants()
    while replica.has_unfinished_requests():
        advance(replica, executor, in_flight, done)
        replica.check_invariants()
        assert len(done.plans) < MAX_STEPS, "a feasible request does not finish"
    end = replica.counters()
    assert (end.num_running, end.num_waiting, end.num_swapped) == (0, 0, 0)
    assert end.num_free_blocks == case.cache.num_blocks - 1
    assert end.num_free_host_blocks == case.cache.num_host_blocks
    done.seen.update(msgspec.structs.asdict(end))
    return done


def submit(replica: Replica, request: Request, accepted: set[str], done: Run) -> None:
    before = replica.counters()
    try:
        replica.add_request(request)
    except RequestError:
        assert replica.counters() == before
        done.seen["refused"] += 1
    else:
        accepted.add(request.request_id)


def advance(
    replica: Replica, executor: CheckingExecutor, in_flight: list[StepPlan], done: Run
) -> None:
    state = replica._state
    before = replica.counters()
    queues = QueuesBefore(state)
    plan = replica.schedule()
    if plan is None:
        assert replica.counters() == before
        assert in_flight or not replica.has_unfinished_requests(), "work, and nothing is planned"
        done.seen["waits for the result"] += len(in_flight)
    else:
        if plan.preempted:
            assert not in_flight  # P5.3b
            queues.check_victims(plan, state, done)
        queues.check_passing_over(state, done)
        check_plan(plan, state.cache, state.scheduler)
        done.seen["run ahead"] += bool(in_flight)
        done.seen["swap in"] += len(plan.swap_ins)
        done.plans.append(plan)
        in_flight.append(plan)
        for row in plan.scheduled:
            table = replica.block_table(row.seq_id)
            assert set(row.new_block_ids) <= set(table)
            done.seen["null entries"] += table.count(0)
    replica.check_invariants()
    wants_more = state.scheduler.async_scheduling and plan is not None and len(in_flight) == 1
    if in_flight and not wants_more:
        oldest = in_flight.pop(0)
        result = executor.execute(oldest)
        update = replica.update(oldest, result)
        done.seen["beams"] += sum(len(selection.parents) for selection in result.selections)
        done.seen["forks"] += len(update.forked)
        done.seen["finished by length"] += sum(e.reason == "length" for e in update.finished)
        done.seen["finished by stop"] += sum(e.reason == "stop" for e in update.finished)
        errors = [ending for ending in update.finished if ending.reason == "error"]
        assert {str(ending.stop_reason) for ending in errors} <= set(result.failed.values())
        done.seen["failed"] += len(errors)
        done.seen["failed with its group"] += sum(e.seq_id not in result.failed for e in errors)


class QueuesBefore:
    """Who ran, rested and waited before a plan, to check whom it preempts."""

    def __init__(self, state: State) -> None:
        resting = [
            seq
            for seq in state.running
            if seq.group.request.beam_search and len(seq.token_ids) == seq.num_computed_tokens
        ]
        stuck = [seq for seq in resting if any(s.status != "running" for s in seq.group.live)]
        due = state.due_preemptions
        forced = [seq for seq in state.running if seq.group.request.request_id in due]
        self.running = [seq.seq_id for seq in state.running]
        self.forced = [seq.seq_id for seq in forced]
        self.forced_beams = [seq for seq in forced if seq.group.is_beam_search]
        self.resting = [seq.seq_id for seq in resting]
        self.stuck = [seq.seq_id for seq in stuck if seq not in forced]
        self.returned = [seq.seq_id for seq in state.returned]
        self.waiting = state.waiting

    def check_victims(self, plan: StepPlan, state: State, done: Run) -> None:
        victims = [victim.seq_id for victim in plan.preempted]
        assert victims[: len(self.forced)] == self.forced[::-1]  # P3.5
        others = victims[len(self.forced) :]
        assert others[: len(self.stuck)] == self.stuck[::-1][: len(others)]  # P3.1a
        done.seen["forced"] += len(self.forced)
        done.seen["forced, and then others"] += bool(self.forced and others)
        done.seen["forced beams"] += len(self.forced_beams)
        done.seen["forced out of the middle"] += victims[0] in self.running[:-1] and not self.stuck
        if self.resting == self.running and not self.forced:  # P2.6a
            assert not plan.scheduled
            assert victims == self.running[-1:]
            done.seen["resting beam makes room for the head"] += 1
        if state.is_fcfs:  # P3.2a
            for victim in plan.preempted:
                if victim.mode == "recompute":
                    place = len(self.returned) if victim.seq_id in self.resting else 0
                    self.returned.insert(place, victim.seq_id)
            assert [seq.seq_id for seq in state.returned] == self.returned
        goes_first = not self.forced and victims[0] != self.running[-1]
        done.seen["stuck beam goes before the last"] += goes_first
        done.seen["resting beam of a whole group preempted"] += bool(
            set(self.resting) & set(victims) - set(self.stuck)
        )

    def check_passing_over(self, state: State, done: Run) -> None:
        """P2.4e by the tokens: who was admitted, and who stands in front of one that was."""
        plan, rows = state.flights[-1].plan, state.flights[-1].rows
        cached = {new.seq_id: new.num_cached_tokens for new in plan.introduced}
        filling = [
            (seq, row)
            for flight in state.flights[:-1]
            for seq, row in zip(flight.rows, flight.plan.scheduled, strict=True)
            if seq.status != "ended"
        ]
        num_in_flight = len(filling)
        filling += zip(rows, plan.scheduled, strict=True)
        admitted = [seq for seq in self.waiting if seq.status == "running"]
        for seq in admitted if state.scheduler.wait_for_prefix else []:
            place = num_in_flight + rows.index(seq)
            index = cached[seq.seq_id] // state.cache.block_size
            assert not fillers(state, filling[:place], seq, index)
        last = self.waiting.index(admitted[-1]) if admitted else 0
        for seq in self.waiting[:last]:
            if seq in admitted:
                continue
            blocks = range((len(seq.token_ids) - 1) // state.cache.block_size)
            by = {row for index in blocks for row in fillers(state, filling, seq, index)}
            assert by, f"{seq.seq_id} is passed over, and nobody computes a block of it"
            assert state.scheduler.wait_for_prefix
            kind = "in flight" if max(by) < num_in_flight else "in the plan"
            done.seen[f"passed over for a block {kind}"] += 1
            done.seen["passed over after a preemption"] += seq.group.was_scheduled
            done.seen["passed over as a group"] += seq.weight > 1


def fillers(
    state: State,
    rows: Sequence[tuple[TwinSequence, ScheduledSequence]],
    seq: TwinSequence,
    index: int,
) -> list[int]:
    """Which of the rows fill a block that is block `index` of the sequence, if it may hit that."""
    end = (index + 1) * state.cache.block_size
    skips_hits = seq.group.request.sampling_params.prompt_logprobs is not None
    if not state.cache.enable_prefix_caching or skips_hits or end >= len(seq.token_ids):
        return []
    return [
        place
        for place, (other, row) in enumerate(rows)
        if row.num_computed_tokens < end <= row.num_computed_tokens + row.num_scheduled_tokens
        and end <= len(other.token_ids)
        and other.token_ids[:end] == seq.token_ids[:end]
        and other.group.request.cache_salt == seq.group.request.cache_salt
    ]


def check_plan(plan: StepPlan, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
    assert plan.scheduled or plan.preempted
    assert plan.num_scheduled_tokens <= scheduler.max_num_batched_tokens
    assert len(plan.scheduled) <= scheduler.max_num_seqs
    assert all(row.num_scheduled_tokens > 0 for row in plan.scheduled)
    assert not {r.seq_id for r in plan.scheduled} & {v.seq_id for v in plan.preempted}
    taken = [block for row in plan.scheduled for block in row.new_block_ids]
    taken += [copy.destination for copy in plan.swap_ins + plan.copies]
    assert len(taken) == len(set(taken)), "a block is given out twice"
    assert set(taken) <= set(range(1, cache.num_blocks))
    assert {c.destination for c in plan.swap_outs} <= set(range(cache.num_host_blocks))


def build_scheduler(pick: Pick) -> SchedulerConfig:
    chunked = pick([True, False])
    max_model_len = pick(range(4, 21))
    max_num_seqs = pick(range(1, 7))
    fewest = max(max_num_seqs, 0 if chunked else max_model_len)
    return SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=fewest + pick(range(11)),
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=pick(range(5)) if chunked else 0,
        policy=pick(["fcfs", "priority"]),
        preemption_mode=pick(["recompute", "swap"]),
        num_lookahead_slots=pick([0, 0, 1, 2]),
        async_scheduling=pick([False, True]),
    )


def build_request(pick: Pick, number: int) -> Request:
    beams = pick([None, None, None, None, 1, 2, 3])
    return Request(
        request_id=f"r{number}",
        prompt_token_ids=tuple(pick([0, 0, 1]) for _ in range(pick(range(1, 10)))),
        sampling_params=SamplingParams(
            n=pick([1, 1, 2, 3]) if beams is None else 1,
            max_tokens=pick(range(1, 11)),
            min_tokens=pick([0, 0, 1]),
            ignore_eos=pick([True, True, False]),
            prompt_logprobs=pick([None, None, None, 1]),
        ),
        beam_search=None if beams is None else BeamSearchParams(beam_width=beams),
        arrival_s=float(pick(range(3))),
        priority=pick(range(3)),
        eos_token_ids=(EOS,),
        cache_salt=pick([None, None, None, "salt"]),
    )


def build_case(pick: Pick) -> Case:
    """Tiny pools, and more requests than they hold."""
    cache = CacheConfig(
        num_blocks=pick(range(6, 17)),
        block_size=pick([2, 3, 4, 1]),
        num_host_blocks=pick(range(9)),
        enable_prefix_caching=pick([True, True, True, False]),
        enable_partial_hits=pick([True, False]),
        watermark_blocks=pick(range(3)),
        sliding_window=pick([0, 0, 2, 5]),
    )
    submitted = [build_request(pick, number) for number in range(pick(range(1, 9)))]
    events: list[tuple[str, int]] = []
    for number in range(len(submitted)):
        events.append(("submit", number))
        for _ in range(pick(range(5))):
            kind = pick(["step"] * 8 + ["submit", "abort", "reset"])
            events.append((kind, pick(range(8))))
    return Case(cache, build_scheduler(pick), submitted, events)


def build_beam_case(pick: Pick) -> Case:
    """Short beam searches among long samples, in a pool that just holds the largest request."""
    block_size, watermark = pick([1, 1, 2]), pick([0, 0, 1])
    scheduler = SchedulerConfig(
        max_model_len=24,
        max_num_seqs=pick(range(3, 9)),
        max_num_batched_tokens=pick(range(8, 25)),
        long_prefill_token_threshold=pick([0, 1, 1, 2, 3]),
        policy=pick(["fcfs", "priority"]),
        preemption_mode=pick(["recompute", "swap"]),
        num_lookahead_slots=pick([0, 0, 0, 1]),
        async_scheduling=pick([False, True]),
    )
    requests = [build_long_request(pick, number) for number in range(pick(range(3, 8)))]
    largest = max(
        (request.beam_search.beam_width if request.beam_search else 1)
        * -(-(tokens_at_most(request) + scheduler.num_lookahead_slots) // block_size)
        for request in requests
    )
    cache = CacheConfig(
        num_blocks=1 + largest + watermark + pick([0, 0, 1]),
        block_size=block_size,
        num_host_blocks=pick([0, 1, 3, 8]),
        enable_prefix_caching=pick([False, True]),
        watermark_blocks=watermark,
    )
    events: list[tuple[str, int]] = []
    for number in range(len(requests)):
        events += [("submit", number), *[("step", 0)] * pick(range(8))]
    return Case(cache, scheduler, requests, events)


def build_long_request(pick: Pick, number: int) -> Request:
    width = pick([None, 2, 2, 3])
    return Request(
        request_id=f"r{number}",
        prompt_token_ids=tuple(pick([0, 1]) for _ in range(pick(range(1, 10 if not width else 5)))),
        sampling_params=SamplingParams(
            n=pick([1, 2, 3]) if width is None else 1,
            max_tokens=pick(range(4, 13)) if width is None else pick(range(2, 6)),
            ignore_eos=True,
        ),
        beam_search=None if width is None else BeamSearchParams(beam_width=width),
        arrival_s=float(pick(range(3))),
        priority=pick(range(3)),
    )


def build_family_case(pick: Pick) -> Case:
    """Requests that begin alike, one on the heels of the other, and wait for each other."""
    case = build_case(pick)
    families = [tuple(pick([0, 1]) for _ in range(12)) for _ in range(2)]
    requests = [
        msgspec.structs.replace(
            request,
            prompt_token_ids=pick(families)[: pick(range(4, 13))] + request.prompt_token_ids[:2],
            cache_salt=None,
        )
        for request in case.requests
    ]
    cache = msgspec.structs.replace(case.cache, enable_prefix_caching=True, block_size=2)
    return waiting_for_prefixes(replace(case, cache=cache, requests=requests))


def forcing_preemptions(case: Case, pick: Pick) -> Case:
    events: list[tuple[str, int]] = []
    for event in case.events:
        events += [event, *[("preempt", pick(range(8)))] * pick([0, 0, 1, 2])]
    return replace(case, events=events)


def tokens_at_most(request: Request) -> int:
    return len(request.prompt_token_ids) + (request.sampling_params.max_tokens or 0)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Shrinks to few short requests, a small pool, and the first choice of every knob."""
    case = build_case(lambda options: draw(st.sampled_from(options)))
    if draw(st.booleans()):
        case = waiting_for_prefixes(case)
    return replace(case, fail_every=draw(st.sampled_from([0, 20])))


def waiting_for_prefixes(case: Case) -> Case:
    scheduler = msgspec.structs.replace(case.scheduler, wait_for_prefix=True)
    return replace(case, scheduler=scheduler)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(cases())
def test_every_read_finds_its_own_tokens_and_every_feasible_request_finishes(case: Case) -> None:
    run(case)


def test_so_it_does_under_pressure_in_every_mode() -> None:
    """Uniform choices reach what shrinkable ones seldom do; here it must all have happened."""
    seen: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        case = build_case(random.Random(seed).choice)
        seen.update(run(replace(case, fail_every=20 * (seed % 2))).seen)
    happened = [
        *("preemptions_recompute", "preemptions_swap", "evictions", "cow_copies", "forks"),
        *("partial_hits", "prefix_hit_tokens", "aborts", "abort in flight", "run ahead"),
        *("refused", "reset", "swap in", "beams", "null entries", "waits for the result"),
        *("finished by length", "finished by stop", "failed", "failed with its group"),
    ]
    assert not [name for name in happened if seen[name] == 0], seen


def test_so_it_does_where_beams_and_long_samples_are_in_each_other_s_way() -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        seen.update(run(build_beam_case(random.Random(seed).choice)).seen)
    happened = [
        *("preemptions_recompute", "preemptions_swap", "cow_copies", "run ahead", "beams"),
        *("stuck beam goes before the last", "resting beam of a whole group preempted"),
        "resting beam makes room for the head",
    ]
    assert not [name for name in happened if seen[name] == 0], seen


def test_so_it_does_where_preemptions_are_forced() -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        pick = random.Random(seed).choice
        case = forcing_preemptions(build_case(pick), pick)
        seen.update(run(replace(case, fail_every=20 * (seed % 2))).seen)
    happened = [
        *("forced", "forced in flight", "forced out of the middle", "forced, and then others"),
        *("forced beams", "nothing to force", "preemptions_swap", "swap in", "abort in flight"),
    ]
    assert not [name for name in happened if seen[name] == 0], seen


def test_so_it_does_where_requests_wait_for_each_other_s_prefixes() -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        seen.update(run(build_family_case(random.Random(seed).choice)).seen)
    happened = [
        *("passed over for a block in flight", "passed over for a block in the plan"),
        *("passed over after a preemption", "passed over as a group"),
        *("preemptions_recompute", "preemptions_swap", "evictions", "aborts", "abort in flight"),
    ]
    assert not [name for name in happened if seen[name] == 0], seen


@pytest.mark.parametrize(
    ("build", "seed"),
    [
        (build_case, 26895),  # P2.6a: a victim in front of the head was preempted for ever
        # P3.1a: a sample in front of a resting beam, alone in need of its blocks, was itself the
        # last, and so began again for ever.
        (build_beam_case, 1639),
        (build_beam_case, 2928),
    ],
)
def test_what_once_went_on_for_ever_ends(build: Callable[[Pick], Case], seed: int) -> None:
    case = build(random.Random(seed).choice)
    assert case.scheduler.policy == "fcfs"
    assert run(case).seen["preemptions_recompute"] > 0


def test_a_resting_beam_that_is_simply_the_last_stands_behind_too() -> None:
    """P3.2a where P3.1, not P3.1a, chose it, and others were preempted before it: seldom."""
    seen = run(build_beam_case(random.Random(2559).choice)).seen
    assert seen["resting beam of a whole group preempted"] > 0


def test_the_same_events_give_the_same_plans() -> None:
    for seed in range(40):
        first, second = (run(build_case(random.Random(seed).choice)) for _ in range(2))
        assert first.plans == second.plans
        assert first.seen == second.seen
