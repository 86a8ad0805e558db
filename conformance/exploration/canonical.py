"""Canonical keys of states: equal where the futures are, whatever blocks and requests are called.

Left out is what no decision looks at: totals, step numbers, ids of ended requests. Renamed are
block ids (by the order in which tables and then the free queue name them) and requests (by their
order among the live ones). One thing looks at block ids: of partial hits that are equally long
the smaller id wins (docs/policy.md P2.4a), so the order of ids among cached blocks of one parent
stays in the key.
"""

from collections.abc import Hashable, Iterable
from typing import Any

from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.scheduler_state import SchedulerState
from pagetwin.engine.sequence import Sequence
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.sequence import TwinSequence
from pagetwin.simulator.state import State


class Names:
    """New names for ids, in the order in which they are first asked for."""

    def __init__(self) -> None:
        self._names: dict[int, int] = {}

    def __call__(self, ids: Iterable[int | None]) -> tuple[int | None, ...]:
        names = self._names
        return tuple(None if i is None else names.setdefault(i, len(names)) for i in ids)


def _ranks(request_ids: Iterable[str]) -> dict[str, int]:
    """Request ids by their order; ids are r0, r1, ... in order of submission."""
    return {request_id: rank for rank, request_id in enumerate(sorted(request_ids))}


def _renamed(seq_ids: Iterable[str], ranks: dict[str, int]) -> tuple[Hashable, ...]:
    """Sequence ids by rank; those of ended requests are only counted."""
    parts = [seq_id.rpartition("/") for seq_id in seq_ids]
    live = sorted((ranks[name], index) for name, _, index in parts if name in ranks)
    return (*live, sum(name not in ranks for name, _, _ in parts))


def engine_key(scheduler: Scheduler) -> Hashable:
    """Key of the engine's scheduler and its block manager."""
    return _EngineView(scheduler._state).key()


class _EngineView:
    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._ranks = _ranks(state.groups)
        self._device, self._host = Names(), Names()
        self._device([0])
        self._first = state.in_flight[0].step if state.in_flight else state.next_step

    def key(self) -> Hashable:
        state, blocks = self._state, self._state.blocks
        running = tuple(self._sequence(seq) for seq in state.running)
        queues = tuple(
            tuple(
                (key[0], self._sequence(seq))
                for key, ticket, seq in sorted(queue._heap, key=lambda entry: entry[:2])
                if queue._tickets.get(seq.seq_id) == ticket
            )
            for queue in (state.waiting, state.swapped)
        )
        deferred = tuple(
            (self._device(self._table(seq_id)), seq.last_step - self._first)
            for seq_id, seq in state.deferred.items()
        )
        pins = tuple(
            (step - self._first, self._device(sources))
            for step, sources in state.copy_sources.items()
        )
        return (
            running,
            queues,
            deferred,
            pins,
            self._pool(),
            self._host(blocks._host_free),
            tuple(blocks._host_counts[i] for i in self._host._names),
            state.num_running,
            _renamed(state.dropped, self._ranks),
            _renamed((f"{name}/0" for name in state.ended_requests), self._ranks),
            tuple(sorted(self._ranks[name] for name in state.to_preempt)),
        )

    def _table(self, seq_id: str) -> list[int]:
        table = self._state.blocks._tables.get(seq_id)
        return table.block_ids if table is not None else []

    def _sequence(self, seq: Sequence) -> Hashable:
        table = self._state.blocks._tables.get(seq.seq_id)
        host = self._state.blocks._host_tables.get(seq.seq_id)
        group = seq.group
        return (
            self._ranks[group.request.request_id],
            group.request.priority,
            seq.sample_index,
            seq.status.value,
            tuple(seq.token_ids),
            seq.num_prompt_tokens,
            seq.num_computed_tokens,
            seq.num_placeholders,
            seq.has_row,
            seq.needs_introduction,
            max(seq.last_step - self._first, -1),
            group.introduced,
            group.forked,
            group.request.num_samples,
            table and (self._device(table.block_ids), table.num_released, table.num_marked),
            host and self._host(host.block_ids),
        )

    def _pool(self) -> Hashable:
        pool = self._state.blocks.pool
        free = self._device(pool._free)
        by_parent: dict[bytes, list[int]] = {}
        for block_id, key in enumerate(pool._keys):
            if key is not None:
                by_parent.setdefault(key.parent, []).append(block_id)
        order = sorted(self._device(group) for group in by_parent.values() if len(group) > 1)
        names = self._device._names
        keys = [pool._keys[block] for block in names]
        return (
            free,
            tuple(order),
            tuple(key and (key.key, key.token_ids, key.extras) for key in keys),
            tuple(pool.ref_counts[block] for block in names),
            len(pool._cached),
        )


def twin_key(replica: Replica) -> Hashable:
    """Key of the twin's scheduler and memory."""
    return _TwinView(replica._state).key()


class _TwinView:
    def __init__(self, state: State) -> None:
        self._state = state
        self._ranks = _ranks(state.groups)
        self._device, self._host = Names(), Names()
        self._device([0])

    def key(self) -> Hashable:
        state = self._state
        queues = tuple(
            tuple(self._sequence(seq) for seq in queue)
            for queue in (state.running, state.returned, state.new, state.swapped)
        )
        flights = tuple(
            (
                tuple(self._sequence(seq) if seq.status == "ended" else None for seq in one.rows),
                self._device(one.pins),
            )
            for one in state.flights
        )
        pool = state.pool
        free = self._device(pool.free)
        names = self._device._names
        order = self._sibling_order()
        return (
            queues,
            flights,
            free,
            tuple(pool.holders[block] for block in names),
            tuple(pool.key_of[block] for block in names),
            order,
            self._host(state.host.free),
            tuple(state.host.holders[i] for i in self._host._names),
            tuple(sorted(self._ranks[request_id] for request_id in state.due_preemptions)),
            _renamed(state.rows_held, self._ranks),
            _renamed(state.rows_valid, self._ranks),
            _renamed(state.rows_to_drop, self._ranks),
            _renamed((f"{name}/0" for name in state.requests_to_forget), self._ranks),
        )

    def _sibling_order(self) -> Hashable:
        by_branch: dict[bytes, list[int]] = {}
        for block_id, key in enumerate(self._state.pool.key_of):
            if key is not None:
                by_branch.setdefault(key.branch, []).append(block_id)
        return tuple(sorted(self._device(group) for group in by_branch.values() if len(group) > 1))

    def _sequence(self, seq: TwinSequence) -> Hashable:
        group = seq.group
        return (
            self._ranks.get(group.request.request_id),
            group.request.priority,
            seq.sample_index,
            seq.status,
            tuple(seq.token_ids),
            group.request.num_prompt_tokens,
            seq.num_computed_tokens,
            group.has_split,
            group.was_scheduled,
            group.request.num_samples,
            tuple(
                (row.num_computed_tokens, row.num_scheduled_tokens, row.samples)
                for flight in self._state.flights
                for row in flight.rows_of(seq)
            ),
            self._device(seq.table),
            self._host(seq.host_table),
        )


def state_key(left: Any, right: Any) -> Hashable:
    """Both sides' keys; each is a scheduler of the engine or of the twin."""
    return _key(left), _key(right)


def _key(side: Any) -> Hashable:
    return engine_key(side) if isinstance(side, Scheduler) else twin_key(side)
