"""Decides, from plans alone, which blocks several sequences hold."""

from collections import Counter

from pagetwin.engine.step import StepPlan

_NULL_BLOCK = 0


class BlockHolders:
    """The block tables as an executor knows them, told plan by plan."""

    def __init__(self) -> None:
        self._tables: dict[str, list[int]] = {}
        self._holders: Counter[int] = Counter()
        self.num_repeats = 0
        """Holders of blocks that several hold, each block's first one left out."""

    def note(self, plan: StepPlan) -> int:
        """What `num_repeats` is once the plan has been made."""
        for seq_id in plan.dropped:
            self._release(self._tables.pop(seq_id, []))
        tables = {one.seq_id: one.block_ids for one in plan.introduced}
        for seq_id, block_ids in tables.items():
            self._release(self._tables.get(seq_id, []))
            self._tables[seq_id] = list(block_ids)
            self._hold(block_ids)
        for row in plan.scheduled:
            if row.seq_id not in tables and (row.new_block_ids or row.replaced_blocks):
                table = self._tables.setdefault(row.seq_id, [])
                for index, block_id in row.replaced_blocks:
                    self._release([table[index]])
                    self._hold([block_id])
                    table[index] = block_id
                table += row.new_block_ids
                self._hold(row.new_block_ids)
        return self.num_repeats

    def _hold(self, block_ids: tuple[int, ...] | list[int]) -> None:
        for block_id in block_ids:
            if block_id != _NULL_BLOCK:
                self.num_repeats += self._holders[block_id] > 0
                self._holders[block_id] += 1

    def _release(self, block_ids: list[int]) -> None:
        for block_id in block_ids:
            if block_id != _NULL_BLOCK:
                self._holders[block_id] -= 1
                self.num_repeats -= self._holders[block_id] > 0
