"""Decides where a sequence stands: the queues, the pools and the books of one replica."""

from bisect import insort
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.policies import order_key, resolve_policy
from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters, ScheduledSequence, StepPlan
from pagetwin.simulator.limits import longest_output
from pagetwin.simulator.memory import NULL_BLOCK, BlockPool, HostPool
from pagetwin.simulator.sequence import TwinGroup, TwinSequence

LengthLimit = Literal["max_tokens", "max_model_len", "pool"]


@dataclass(slots=True)
class Totals:
    """What is counted since the start; the levels are read off the queues."""

    prefix_queries: int = 0
    prefix_hit_tokens: int = 0
    partial_hits: int = 0
    cow_copies: int = 0
    preemptions_recompute: int = 0
    preemptions_swap: int = 0
    finished: int = 0
    aborts: int = 0


class Flight(msgspec.Struct, frozen=True, eq=False):
    """A planned step whose result is awaited."""

    plan: StepPlan
    rows: tuple[TwinSequence, ...]
    """The sequences of `plan.scheduled`, as objects: an id may be used again meanwhile."""
    pins: tuple[int, ...]
    """Sources of partial hits, held until the step has run (P2.4a)."""

    def rows_of(self, seq: TwinSequence) -> list[ScheduledSequence]:
        """What it plans for the sequence: one row, or none."""
        pairs = zip(self.rows, self.plan.scheduled, strict=True)
        return [row for other, row in pairs if other is seq]


class State:
    """Everything that planning reads and closing a step writes."""

    def __init__(self, cache: CacheConfig, scheduler: SchedulerConfig) -> None:
        self.cache = cache
        self.scheduler = scheduler
        self.lookahead = scheduler.num_lookahead_slots
        self._block_size = cache.block_size
        self.policy = resolve_policy(scheduler.policy)
        self.pool = BlockPool(cache.num_blocks, enable_prefix_caching=cache.enable_prefix_caching)
        self.host = HostPool(cache.num_host_blocks)
        self.tags = (("dtype", cache.kv_cache_dtype), ("weights", cache.weights_version))
        self.groups: dict[str, TwinGroup] = {}
        self.running: list[TwinSequence] = []
        # P3.2a: under fcfs the preempted ones stand in front; otherwise `returned` stays empty
        # and `new` holds all that wait, by key.
        self.returned: list[TwinSequence] = []
        self.new: list[TwinSequence] = []
        self.swapped: list[TwinSequence] = []
        self.flights: list[Flight] = []
        self.due_preemptions: set[str] = set()
        """Requests of which somebody asked that they be preempted (P3.5)."""
        self.rows_held: set[str] = set()
        """Sequence ids for which the executor keeps a row."""
        self.rows_valid: set[str] = set()
        """Those of them whose row is right, so that it need not be introduced again."""
        self.rows_to_drop: set[str] = set()
        self.requests_to_forget: set[str] = set()
        """Those that ended since the plan before and that the executor has been sent."""
        self.totals = Totals()

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks for `num_tokens` and the K lookahead slots."""
        return -(-(num_tokens + self.lookahead) // self._block_size)

    def key(self, seq: TwinSequence) -> tuple[Any, ...]:
        return (*order_key(self.policy, seq.group.request), seq.sample_index)

    @property
    def is_fcfs(self) -> bool:
        return self.scheduler.policy == "fcfs"

    @property
    def waiting(self) -> list[TwinSequence]:
        return self.returned + self.new

    @property
    def num_running(self) -> int:
        """Running sequences as counted towards max_num_seqs (P2.8)."""
        return sum(seq.weight for seq in self.running)

    @property
    def watermark(self) -> int:
        return self.cache.watermark_blocks if self.running else 0  # P2.4b

    def has_id_in_use(self, request_id: str) -> bool:
        """Whether the request lives, or a step in flight still holds its blocks (P2.5)."""
        in_flight = (seq.group for flight in self.flights for seq in flight.rows)
        return request_id in self.groups or any(
            group.request.request_id == request_id for group in in_flight
        )

    def submit(self, request: Request) -> None:
        group = self.new_group(request)
        seq = TwinSequence(group, 0, list(request.prompt_token_ids))
        group.sequences.append(seq)
        self.groups[request.request_id] = group
        insort(self.new, seq, key=self.key)

    def new_group(self, request: Request) -> TwinGroup:
        """A request without a sequence yet."""
        longest = longest_output(request, self.cache, self.scheduler)
        return TwinGroup(request, request.num_prompt_tokens + longest)

    def holds_shared(self, seq: TwinSequence, first: int) -> bool:
        """Whether others hold a block of its table, too, from that entry on."""
        pool = self.pool
        return pool.num_shared > 0 and any(pool.is_shared(block) for block in seq.table[first:])

    def start(self, seq: TwinSequence) -> None:
        """A waiting or swapped sequence joins running (P2.3)."""
        self.unqueue(seq)
        seq.status = "running"
        if self.is_fcfs:
            self.running.append(seq)
        else:
            insort(self.running, seq, key=self.key)

    def stop(self, seq: TwinSequence, *, swapped: bool, makes_way: bool) -> None:
        """A preempted sequence leaves running for the front of its queue, or its key (P3.2).

        One that makes way stands behind those preempted before it (P3.2a).
        """
        self.unqueue(seq)
        self.forget_row(seq.seq_id)
        seq.status = "swapped" if swapped else "waiting"
        seq.decodes_until = 0
        if self.is_fcfs:
            front = self.swapped if swapped else self.returned
            front.insert(len(front) if makes_way else 0, seq)
        else:
            insort(self.swapped if swapped else self.new, seq, key=self.key)

    def end(self, seq: TwinSequence) -> None:
        """A finished or aborted sequence gives up its place, and its blocks once no step in
        flight uses them (P5.2, P5.3c)."""
        self.unqueue(seq)
        seq.status = "ended"
        self.forget_row(seq.seq_id)
        self.host.release_table(seq.host_table)
        if not seq.is_in_flight:
            self.pool.release_table(seq.table)
        if not seq.group.live:
            seq.group.sequences.clear()  # a cycle, which only the garbage collector would free
            del self.groups[seq.group.request.request_id]
            self.due_preemptions.discard(seq.group.request.request_id)  # P3.5a
            if seq.group.was_scheduled:
                self.requests_to_forget.add(seq.group.request.request_id)

    def unqueue(self, seq: TwinSequence) -> None:
        if seq.status == "running":
            self.running.remove(seq)
        elif seq.status == "swapped":
            self.swapped.remove(seq)
        else:
            (self.returned if seq in self.returned else self.new).remove(seq)

    def forget_row(self, seq_id: str) -> None:
        if seq_id in self.rows_held:
            self.rows_held.remove(seq_id)
            self.rows_to_drop.add(seq_id)
        self.rows_valid.discard(seq_id)

    def length_limit(self, seq: TwinSequence, num_tokens: int) -> LengthLimit | None:
        """Which limit, if any, ends the sequence at `num_tokens` (P5.1a), in that order."""
        max_tokens, prompt = seq.group.max_tokens, seq.group.num_prompt_tokens
        if max_tokens is not None and num_tokens - prompt >= max_tokens:
            return "max_tokens"
        if num_tokens >= self.scheduler.max_model_len:
            return "max_model_len"
        if self.blocks_for(num_tokens) > self.cache.num_blocks - 1:
            return "pool"
        return None

    @property
    def num_repeated_tokens(self) -> int:
        """Tokens in blocks that several hold, each block counted once less than its holders."""
        return self.pool.num_repeats * self.cache.block_size

    def counters(self) -> Counters:
        return Counters(
            num_waiting=len(self.waiting),
            num_running=self.num_running,
            num_swapped=len(self.swapped),
            num_free_blocks=self.pool.num_free,
            num_cached_blocks=len(self.pool.cached),
            num_free_host_blocks=self.host.num_free,
            prefix_queries=self.totals.prefix_queries,
            prefix_hit_tokens=self.totals.prefix_hit_tokens,
            partial_hits=self.totals.partial_hits,
            evictions=self.pool.num_evictions,
            cow_copies=self.totals.cow_copies,
            preemptions_recompute=self.totals.preemptions_recompute,
            preemptions_swap=self.totals.preemptions_swap,
            finished=self.totals.finished,
            aborts=self.totals.aborts,
        )

    def check_invariants(self) -> None:
        """Recounts every book the slow way; AssertionError names the one that is wrong."""
        live = [seq for group in self.groups.values() for seq in group.live]
        in_flight = [seq for flight in self.flights for seq in flight.rows]
        ended = {id(seq): seq for seq in in_flight if seq.status == "ended"}.values()
        pins = [block_id for flight in self.flights for block_id in flight.pins]
        held = [b for seq in [*live, *ended] for b in seq.table]
        self.pool.check_invariants(iter([*held, *pins]))
        self.host.check_invariants(iter([b for seq in live for b in seq.host_table]))
        queued = {"running": self.running, "waiting": self.waiting, "swapped": self.swapped}
        for status, queue in queued.items():
            assert all(seq.status == status for seq in queue), f"a {status} one is not {status}"
        everywhere = [seq.seq_id for queue in queued.values() for seq in queue]
        assert sorted(everywhere) == sorted(seq.seq_id for seq in live), (
            "queues and requests differ"
        )
        assert self.due_preemptions <= self.groups.keys(), "a preemption outlived its request"
        assert self.num_running <= self.scheduler.max_num_seqs, "more run than max_num_seqs"
        for queue in [self.new] if self.is_fcfs else [self.new, self.running, self.swapped]:
            keys = [self.key(seq) for seq in queue]
            assert keys == sorted(keys), "a queue is out of order"
        for seq in live:
            self._check_sequence(seq)
            rows = [row for flight in self.flights for row in flight.rows_of(seq)]
            planned = seq.num_computed_tokens + sum(row.num_scheduled_tokens for row in rows)
            assert seq.num_planned_computed == planned, f"{seq.seq_id}: not what is in flight"

    def _check_sequence(self, seq: TwinSequence) -> None:
        real = [block_id for block_id in seq.table if block_id != NULL_BLOCK]
        assert len(real) == len(set(real)), f"{seq.seq_id} holds a block twice"
        if seq.status == "running":
            assert len(seq.table) * self.cache.block_size >= seq.num_planned_computed
            assert seq.num_planned_computed <= seq.num_planned_tokens()
        else:
            assert not seq.table, f"{seq.seq_id} is {seq.status} and holds device blocks"
            assert not seq.is_in_flight, f"{seq.seq_id} is {seq.status} and in flight"
        if seq.status == "waiting":
            assert seq.num_computed_tokens == 0, f"{seq.seq_id} waits with computed tokens"
        assert bool(seq.host_table) == (seq.status == "swapped")
