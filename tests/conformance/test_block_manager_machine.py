"""The block manager against a naive model of lists and dictionaries, operation by operation."""

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pagetwin.engine.block_manager import AllocStatus, BlockManager, PrefixHit
from pagetwin.engine.config import CacheConfig
from pagetwin.engine.prefix_keys import KeyChain
from pagetwin.engine.request import Request

Chain = tuple[str | None, tuple[int, ...]]
"""What a cached block stands for: the salt, and all tokens up to its end."""

EVENTS = (
    "admissions",
    "refused admissions",
    "impossible admissions",
    "full hits",
    "partial hits",
    "hits on free blocks",
    "admissions held back by the watermark",
    "appends",
    "refused appends",
    "copies",
    "forks",
    "frees",
    "evictions",
    "window releases",
    "swap-outs",
    "refused swap-outs",
    "shared blocks swapped once",
    "swap-ins",
    "refused swap-ins",
    "resets",
    "refused resets",
    "second holders of equal content",
)


@dataclass
class Seq:
    """What the machine knows of one sequence beside its table."""

    salt: str | None
    tokens: list[int]
    keys: KeyChain
    computed: int = 0


@dataclass
class NaivePool:
    """docs/policy.md P4 by scanning: counts are recounted, nothing is kept twice."""

    config: CacheConfig
    tables: dict[str, list[int]] = field(default_factory=dict)
    host: dict[str, list[int | None]] = field(default_factory=dict)
    pins: list[int] = field(default_factory=list)
    cached: dict[int, Chain] = field(default_factory=dict)
    evictions: int = 0
    copies: int = 0

    def __post_init__(self) -> None:
        self.queue = list(range(1, self.config.num_blocks))
        self.host_queue = list(range(self.config.num_host_blocks))

    def blocks_for(self, num_slots: int) -> int:
        return -(-num_slots // self.config.block_size)

    def count(self, block: int) -> int:
        return sum(table.count(block) for table in self.tables.values()) + self.pins.count(block)

    def take(self) -> int:
        block = self.queue.pop(0)
        self.evictions += self.cached.pop(block, None) is not None
        return block

    def requeue(self, block: int) -> None:
        """Called after a holder has let go."""
        if block and self.count(block) == 0:
            self.queue.append(block)

    def hold(self, block: int) -> None:
        if block in self.queue:
            self.queue.remove(block)

    def free(self, seq_id: str) -> None:
        table = self.tables.get(seq_id, [])
        while table:
            self.requeue(table.pop())
        self.tables.pop(seq_id, None)

    def free_host(self, seq_id: str) -> None:
        table = self.host.pop(seq_id)
        while table:
            block = table.pop()
            if block is not None and not any(
                block in other for other in [table, *self.host.values()]
            ):
                self.host_queue.append(block)

    def lookup(self, salt: str | None, tokens: list[int]) -> PrefixHit:
        size = self.config.block_size
        if not self.config.enable_prefix_caching:
            return PrefixHit()
        hits: list[int] = []
        for end in range(size, len(tokens), size):
            chain = (salt, tuple(tokens[:end]))
            found = [block for block, held in self.cached.items() if held == chain]
            if not found:
                break
            hits += found
        start = len(hits) * size
        if not self.config.enable_partial_hits:
            return PrefixHit(tuple(hits))
        runs = []
        for block, (other_salt, other) in self.cached.items():
            if other[:-size] == tuple(tokens[:start]) and other_salt == salt:
                run = 0
                while (
                    run < size - 1
                    and start + run < len(tokens) - 1
                    and (other[start + run] == tokens[start + run])
                ):
                    run += 1
                runs.append((-run, block))
        best = min(runs, default=(0, 0))
        return PrefixHit(tuple(hits), best[1], -best[0]) if best[0] else PrefixHit(tuple(hits))

    def room_for(self, num_slots: int, hit: PrefixHit) -> int:
        """Blocks that would stay free after the allocation."""
        reserved = {*hit.block_ids, *([hit.source] if hit.num_partial else [])}
        free = [block for block in self.queue if block not in reserved]
        return len(free) - (self.blocks_for(num_slots) - len(hit.block_ids))


class BlockManagerMachine(RuleBasedStateMachine):
    """Applies the same operations to both, and compares everything that can be seen."""

    seen: ClassVar[Counter[str]]
    """What has happened in all runs together."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.seqs: dict[str, Seq] = {}
        self.texts: list[list[int]] = []
        """Tokens of the latest admissions, to be asked for again."""

    @initialize(
        size=st.sampled_from((3, 2, 1, 4, 4)),
        blocks=st.integers(3, 10),
        host=st.sampled_from((8, 0, 1, 3)),
        caching=st.sampled_from((True, True, True, False)),
        partial=st.sampled_from((True, True, False)),
        window=st.sampled_from((0, 0, 0, 1, 3)),
        lookahead=st.sampled_from((0, 0, 1)),
    )
    def start(
        self,
        size: int,
        blocks: int,
        host: int,
        caching: bool,
        partial: bool,
        window: int,
        lookahead: int,
    ) -> None:
        self.config = CacheConfig(
            num_blocks=blocks,
            block_size=size,
            num_host_blocks=host,
            enable_prefix_caching=caching,
            enable_partial_hits=partial,
            sliding_window=window,
        )
        self.lookahead = lookahead
        self.manager = BlockManager(self.config)
        self.naive = NaivePool(self.config)

    @property
    def on_device(self) -> list[str]:
        return list(self.naive.tables)

    @rule(
        data=st.data(),
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        salt=st.sampled_from((None, None, None, "a")),
        watermark=st.sampled_from((0, 0, 1)),
        whole=st.sampled_from((True, True, False)),
    )
    def admit(
        self,
        data: st.DataObject,
        tokens: list[int],
        salt: str | None,
        watermark: int,
        whole: bool,
    ) -> None:
        base = data.draw(st.sampled_from([[], *self.texts]))
        kept = data.draw(st.integers(0, len(base)))
        tokens = (base[:kept] + tokens)[: 3 * self.config.block_size + 2]
        self.texts = [*self.texts[-3:], tokens]
        request = Request(request_id="r", prompt_token_ids=tuple(tokens), cache_salt=salt)
        seq = Seq(salt, list(tokens), KeyChain(request, self.config))
        hit = self.manager.lookup_prefix(seq.keys, tokens)
        assert hit == self.naive.lookup(salt, tokens)
        if not whole:
            hit = hit.without_partial()
        start = hit.num_tokens(self.config.block_size)
        end = data.draw(st.integers(start + 1, len(tokens)))
        slots = end + self.lookahead
        room = self.naive.room_for(slots, hit)
        expected = AllocStatus.OK if room >= watermark else AllocStatus.LATER
        if self.naive.blocks_for(slots) > self.config.num_blocks - 1:
            expected = AllocStatus.NEVER
            self.seen["impossible admissions"] += 1
        assert self.manager.can_allocate(slots, hit, watermark=watermark) is expected
        self.seen["admissions held back by the watermark"] += 0 <= room < watermark
        seq_id = f"s{self.made}"
        if room < 0 or expected is AllocStatus.NEVER:
            self.seen["refused admissions"] += 1
            with pytest.raises(ValueError, match="can_allocate"):
                self.manager.allocate(seq_id, slots, hit)
        elif expected is AllocStatus.OK:
            self.made += 1
            self.seqs[seq_id] = seq
            self._allocate(seq_id, slots, hit, end)

    def _allocate(self, seq_id: str, slots: int, hit: PrefixHit, end: int) -> None:
        naive = self.naive
        copy = self.manager.allocate(seq_id, slots, hit)
        for block in hit.block_ids:
            self.seen["hits on free blocks"] += block in naive.queue
            naive.hold(block)
        table = list(hit.block_ids)
        naive.tables[seq_id] = table
        if hit.num_partial:
            naive.hold(hit.source)
            naive.pins.append(hit.source)
        while len(table) < naive.blocks_for(slots):
            table.append(naive.take())
        expected = (hit.source, table[len(hit.block_ids)]) if hit.num_partial else None
        assert copy == expected
        self.seen["admissions"] += 1
        self.seen["full hits"] += bool(hit.block_ids)
        self.seen["partial hits"] += bool(hit.num_partial)
        self.seqs[seq_id].computed = hit.num_tokens(self.config.block_size)
        self._compute(seq_id, end)

    def _compute(self, seq_id: str, end: int) -> None:
        """The step has run: blocks that are full now enter the cache."""
        seq, size, naive = self.seqs[seq_id], self.config.block_size, self.naive
        self.manager.mark_computed(seq_id, seq.keys, seq.tokens, end)
        for index in range(seq.computed // size, end // size):
            chain = (seq.salt, tuple(seq.tokens[: (index + 1) * size]))
            if not self.config.enable_prefix_caching:
                continue
            if chain in naive.cached.values():
                self.seen["second holders of equal content"] += 1
            else:
                naive.cached[naive.tables[seq_id][index]] = chain
        seq.computed = end

    @precondition(lambda self: self.naive.pins)
    @rule()
    def step_ends(self) -> None:
        """Sources of partial hits are let go."""
        for block in list(self.naive.pins):
            self.manager.unpin(block)
            self.naive.pins.remove(block)
            self.naive.requeue(block)

    @precondition(lambda self: self.on_device)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        seq_id = data.draw(st.sampled_from(self.on_device))
        seq, naive, size = self.seqs[seq_id], self.naive, self.config.block_size
        if seq.computed == len(seq.tokens):
            seq.tokens += tokens
        start, end = seq.computed, data.draw(st.integers(seq.computed + 1, len(seq.tokens)))
        slots = end + self.lookahead
        table = naive.tables[seq_id]
        shared = [
            index
            for index in range(start // size, min(len(table), naive.blocks_for(slots)))
            if naive.count(table[index]) > 1
        ]
        missing = max(0, naive.blocks_for(slots) - len(table)) + len(shared)
        assert self.manager.num_missing(seq_id, start, slots) == missing
        assert self.manager.can_append(seq_id, start, slots) == (missing <= len(naive.queue))
        if missing > len(naive.queue):
            self.seen["refused appends"] += 1
            assert self.manager.try_append_slots(seq_id, start, slots) is None
            with pytest.raises(ValueError, match="can_append"):
                self.manager.append_slots(seq_id, start, slots)
            return
        appended = self.manager.append_slots(seq_id, start, slots)
        copies = []
        for index in shared:
            old, table[index] = table[index], naive.take()
            copies.append((old, table[index]))
            naive.requeue(old)
        new = [naive.take() for _ in range(missing - len(shared))]
        table += new
        naive.copies += len(copies)
        assert list(appended.new_block_ids) == new
        assert list(appended.copies) == copies
        assert appended.replaced_blocks == tuple((index, table[index]) for index in shared)
        self.seen["appends"] += 1
        self.seen["copies"] += len(copies)
        self._compute(seq_id, end)

    @precondition(lambda self: self.on_device)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent_id = data.draw(st.sampled_from(self.on_device))
        parent, child_id = self.seqs[parent_id], f"s{self.made}"
        self.made += 1
        self.manager.fork(parent_id, child_id)
        self.naive.tables[child_id] = list(self.naive.tables[parent_id])
        self.seqs[child_id] = Seq(
            parent.salt, list(parent.tokens), parent.keys.copy(), parent.computed
        )
        self.seen["forks"] += 1
        with pytest.raises(ValueError, match="has a block table already"):
            self.manager.fork(parent_id, child_id)

    @precondition(lambda self: self.on_device)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        seq_id = data.draw(st.sampled_from(self.on_device))
        for _ in range(2):  # The second time it is unknown, and nothing happens.
            self.manager.free(seq_id)
        self.naive.free(seq_id)
        del self.seqs[seq_id]
        self.seen["frees"] += 1

    @precondition(lambda self: self.on_device and self.config.sliding_window)
    @rule(data=st.data())
    def release_window(self, data: st.DataObject) -> None:
        seq_id = data.draw(st.sampled_from(self.on_device))
        seq, table = self.seqs[seq_id], self.naive.tables[seq_id]
        self.manager.release_outside_window(seq_id, seq.computed)
        for index, block in enumerate(table):
            last_visible = seq.computed - self.config.sliding_window + 1
            if block and (index + 1) * self.config.block_size <= last_visible:
                table[index] = 0
                self.naive.requeue(block)
                self.seen["window releases"] += 1

    @precondition(lambda self: self.on_device)
    @rule(data=st.data())
    def swap_out_several(self, data: st.DataObject) -> None:
        """The victims of one step: a block that two of them share is copied once."""
        self.manager.start_step()
        copied: dict[int, int] = {}
        several = st.lists(st.sampled_from(self.on_device), min_size=1, max_size=3, unique=True)
        for seq_id in data.draw(several):
            seq, naive = self.seqs[seq_id], self.naive
            blocks = naive.tables[seq_id][: naive.blocks_for(seq.computed)]
            wanted = [block for block in blocks if block and block not in copied]
            room = len(wanted) <= len(naive.host_queue)
            assert self.manager.can_swap_out(seq_id, seq.computed) == room
            if not room:
                self.seen["refused swap-outs"] += 1
                with pytest.raises(ValueError, match="can_swap_out"):
                    self.manager.swap_out(seq_id, seq.computed)
                continue
            self.seen["swap-outs"] += 1
            self.seen["shared blocks swapped once"] += len(wanted) < len([b for b in blocks if b])
            for block in wanted:
                copied[block] = naive.host_queue.pop(0)
            expected = [(block, copied[block]) for block in wanted]
            assert list(self.manager.swap_out(seq_id, seq.computed)) == expected
            naive.host[seq_id] = [copied[block] if block else None for block in blocks]
            naive.free(seq_id)

    @precondition(lambda self: self.naive.host)
    @rule(data=st.data(), watermark=st.sampled_from((0, 0, 1)))
    def swap_in(self, data: st.DataObject, watermark: int) -> None:
        seq_id = data.draw(st.sampled_from(list(self.naive.host)))
        seq, naive = self.seqs[seq_id], self.naive
        if seq.computed == len(seq.tokens):
            seq.tokens.append(0)
        slots = seq.computed + 1 + self.lookahead
        host = naive.host[seq_id]
        needed = naive.blocks_for(slots) - host.count(None)
        fits = len(naive.queue) - needed >= watermark
        assert self.manager.can_swap_in(seq_id, slots, watermark=watermark) == fits
        if len(naive.queue) < needed:
            self.seen["refused swap-ins"] += 1
            with pytest.raises(ValueError, match="can_swap_in"):
                self.manager.swap_in(seq_id, slots)
        elif fits:
            self.seen["swap-ins"] += 1
            copies = self.manager.swap_in(seq_id, slots)
            table = [0 if block is None else naive.take() for block in host]
            saved = zip(host, table, strict=True)
            assert list(copies) == [(block, new) for block, new in saved if block is not None]
            table += [naive.take() for _ in range(naive.blocks_for(slots) - len(table))]
            naive.tables[seq_id] = table
            naive.free_host(seq_id)
            self.manager.skip_marking(seq_id, seq.computed)

    @precondition(lambda self: self.made > 3)
    @rule()
    def reset(self) -> None:
        idle = len(self.naive.queue) == self.config.num_blocks - 1
        assert self.manager.reset_prefix_cache() == idle
        self.seen["resets" if idle else "refused resets"] += 1
        if idle:
            self.naive.cached.clear()

    @invariant()
    def both_show_the_same(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager, naive = self.manager, self.naive
        manager.check_invariants()
        for seq_id in [*self.seqs, "unknown"]:
            assert manager.get_block_table(seq_id) == tuple(naive.tables.get(seq_id, ()))
            assert manager.holds_blocks(seq_id) == (seq_id in naive.tables)
        assert manager.num_free_blocks == len(naive.queue)
        assert manager.num_free_host_blocks == len(naive.host_queue)
        assert manager.pool.num_cached == len(naive.cached)
        assert manager.pool.evictions == naive.evictions
        assert manager.cow_copies == naive.copies

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.seen["evictions"] += self.naive.evictions
        for seq_id in list(self.seqs):
            self.manager.free(seq_id)
            self.manager.free_host(seq_id)
        self.step_ends()
        self.manager.check_invariants()
        assert self.manager.num_free_blocks == self.config.num_blocks - 1
        assert self.manager.num_free_host_blocks == self.config.num_host_blocks


def test_the_block_manager_is_the_naive_model_after_every_operation() -> None:
    class CountedMachine(BlockManagerMachine):
        seen: ClassVar[Counter[str]] = Counter()

    run_state_machine_as_test(CountedMachine, settings=settings(stateful_step_count=60))
    seen = CountedMachine.seen
    assert not [event for event in EVENTS if not seen[event]], seen
