"""Decides which blocks are being computed, so that a request may wait for one (P2.4e)."""

from pagetwin.engine.step import ScheduledSequence
from pagetwin.simulator.plan_builder import PlanBuilder
from pagetwin.simulator.prefix_key import PrefixKey
from pagetwin.simulator.sequence import TwinSequence, prefix_keys


class BlocksUnderWay:
    """Keys of the blocks that the step in flight and the plan in the making fill."""

    def __init__(self, builder: PlanBuilder) -> None:
        self._builder = builder
        self._keys: set[PrefixKey] = set()
        self._num_rows_seen = 0
        """Of the plan, which grows."""
        for flight in builder.state.flights:
            for seq, row in zip(flight.rows, flight.plan.scheduled, strict=True):
                if seq.status != "ended":
                    self._add(seq, row)

    def __contains__(self, key: PrefixKey) -> bool:
        builder = self._builder
        for place in range(self._num_rows_seen, len(builder.rows)):
            self._add(builder.rows[place], builder.scheduled[place])
        self._num_rows_seen = len(builder.rows)
        return key in self._keys

    def _add(self, seq: TwinSequence, row: ScheduledSequence) -> None:
        """The blocks that the row makes full; those with a placeholder have no key yet."""
        state = self._builder.state
        block_size = state.cache.block_size
        computed = row.num_computed_tokens + row.num_scheduled_tokens
        first = row.num_computed_tokens // block_size
        end = min(computed, len(seq.token_ids)) // block_size
        if end > first:
            keys = prefix_keys(seq, end, block_size=block_size, tags=state.tags)
            self._keys.update(keys[first:end])
