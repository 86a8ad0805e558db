"""Holdings: which device and host blocks are held, how often, and by which pins."""

from collections import Counter

from pagetwin.conformance.facts import LedgerSequence, Replaced, TableChange
from pagetwin.engine.config import CacheConfig
from pagetwin.engine.step import BlockCopy, IntroducedSequence, ScheduledSequence, StepPlan


class Holdings:
    """Counts of holders by block. It believes what the plans say; checkers judge them."""

    def __init__(self, cache: CacheConfig) -> None:
        self._cache = cache
        self.device: Counter[int] = Counter()
        self.host: Counter[int] = Counter()
        self._pins: dict[int, list[int]] = {}

    @property
    def num_free_blocks(self) -> int:
        return self._cache.num_blocks - 1 - len(+self.device)

    @property
    def num_free_host_blocks(self) -> int:
        return self._cache.num_host_blocks - len(+self.host)

    def hold(self, blocks: list[int]) -> None:
        self.device.update(block for block in blocks if block)

    def drop(self, blocks: list[int]) -> None:
        self.device.subtract(block for block in blocks if block)

    def drop_table(self, sequence: LedgerSequence) -> None:
        self.drop(sequence.table)
        sequence.table = []

    def drop_host(self, sequence: LedgerSequence) -> None:
        self.host.subtract(block for block in sequence.host if block >= 0)
        sequence.host = []

    def unpin(self, step: int) -> None:
        """Lets go of the sources of the step's partial hits."""
        self.drop(self._pins.pop(step, []))

    def save(
        self, copies: tuple[BlockCopy, ...], sequence: LedgerSequence, saved: dict[int, int]
    ) -> tuple[tuple[int, int], ...]:
        """Moves the computed entries to the host, each to where the step's copies put it.

        `saved` holds where the step's earlier victims put theirs, a shared block being copied
        once (docs/policy.md P3.3a); it is added to. Returns (device block, host block) pairs.
        """
        copied = {copy.source: copy.destination for copy in copies}
        blocks = sequence.table[: -(-sequence.computed // self._cache.block_size)]
        for block in blocks:
            if block:
                saved.setdefault(block, copied.get(block, -1))
        sequence.host = [saved[block] if block else -1 for block in blocks]
        self.host.update(host for host in sequence.host if host >= 0)
        return tuple((block, saved[block]) for block in blocks if block)

    def restore(self, sequence: LedgerSequence, intro: IntroducedSequence) -> TableChange:
        """A swap-in: device blocks of its own for each saved entry, and new ones behind them."""
        pairs = zip(sequence.host, intro.block_ids, strict=False)
        restored = tuple((host, block) for host, block in pairs if host >= 0)
        self.drop_host(sequence)
        taken = [block for block in intro.block_ids if block]
        return self._change(sequence, list(intro.block_ids), taken, restored=restored)

    def admit(
        self, plan: StepPlan, sequence: LedgerSequence, intro: IntroducedSequence
    ) -> TableChange:
        """An admission: the hits are taken up, then the source, then new blocks are taken."""
        full, partial = divmod(intro.num_cached_tokens, self._cache.block_size)
        hits = intro.block_ids[:full]
        self.hold(list(hits))
        source: int | None = None
        if partial:
            target = intro.block_ids[full] if full < len(intro.block_ids) else -1
            source = next((c.source for c in plan.copies if c.destination == target), None)
        if source is not None:
            self.hold([source])
            self._pins.setdefault(plan.step, []).append(source)
        table = list(intro.block_ids)
        return self._change(sequence, table, table[full:], hits=hits, source=source)

    def extend(
        self,
        sequence: LedgerSequence,
        scheduled: ScheduledSequence,
        intro: IntroducedSequence | None,
        held_before: Counter[int],
    ) -> TableChange:
        """A running sequence: entries replaced by copies, then blocks appended.

        For one that the plan introduces, what changed is read off its whole new table.
        `held_before` are the holders before the plan: a victim of the same step may have been
        the other holder when the copy was planned.
        """
        table = list(sequence.table)
        if intro is None:
            changes = [c for c in scheduled.replaced_blocks if 0 <= c[0] < len(table)]
            appended = list(scheduled.new_block_ids)
        else:
            both = enumerate(zip(table, intro.block_ids, strict=False))
            changes = [(index, new) for index, (old, new) in both if old != new]
            appended = list(intro.block_ids[len(table) :])
        replaced = tuple(
            Replaced(i, table[i], new, max(held_before[table[i]], self.device[table[i]]) > 1)
            for i, new in changes
        )
        for one in replaced:
            table[one.index] = one.new
        taken = [one.new for one in replaced] + appended
        change = self._change(sequence, table + appended, taken, replaced=replaced)
        self.drop([one.old for one in replaced])
        return change

    def _change(
        self,
        sequence: LedgerSequence,
        table: list[int],
        taken: list[int],
        *,
        hits: tuple[int, ...] = (),
        source: int | None = None,
        replaced: tuple[Replaced, ...] = (),
        restored: tuple[tuple[int, int], ...] = (),
    ) -> TableChange:
        occupied = [b for i, b in enumerate(taken) if self.device[b] > 0 or b in taken[:i]]
        self.hold(taken)
        sequence.table = table
        return TableChange(
            table=tuple(table),
            hits=hits,
            source=source,
            taken=tuple(taken),
            occupied=tuple(occupied),
            replaced=replaced,
            restored=restored,
        )
