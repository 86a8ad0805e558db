"""Mutants of the KV memory's moves: copies, swaps, writes."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

MEMORY = "pagetwin.engine.kv_cache"

MEMORY_MOVES = (
    Mutant(
        id="memory.last-slot-not-swapped",
        bug="D16",
        statement="A swap leaves out the last slot of each block.",
        expects="swap.bytes",
        trigger="a swap of a full block",
        edits=(
            Edit(
                f"{MEMORY}:_move",
                "target_pool.index_copy_(2, destinations, blocks.to(target_pool.device))",
                "target_pool[:, :, :, :-1].index_copy_(2, destinations, "
                "blocks[:, :, :, :-1].to(target_pool.device))",
            ),
        ),
        also_tried=("kv",),
    ),
    Mutant(
        id="memory.values-not-swapped",
        bug="D16",
        statement="A swap moves keys alone.",
        expects="swap.round-trip",
        trigger="a swap",
        edits=(
            Edit(
                f"{MEMORY}:_move",
                "target_pool.index_copy_(2, destinations, blocks.to(target_pool.device))",
                "target_pool[:, :1].index_copy_(2, destinations, "
                "blocks[:, :1].to(target_pool.device))",
            ),
        ),
    ),
    Mutant(
        id="memory.last-layer-not-swapped",
        bug="D16",
        statement="A swap leaves out the last layer.",
        expects="swap.round-trip",
        trigger="a swap",
        edits=(
            Edit(
                f"{MEMORY}:_move",
                "target_pool.index_copy_(2, destinations, blocks.to(target_pool.device))",
                "target_pool[:-1].index_copy_(2, destinations, blocks[:-1].to(target_pool.device))",
            ),
        ),
    ),
    Mutant(
        id="memory.copies-before-swaps",
        bug="",
        statement="Copies run before the swap-ins that bring what they copy.",
        expects="swap.round-trip",
        trigger="a copy of a block that was just swapped in",
        edits=(
            Edit(
                f"{MEMORY}:KVCache.apply",
                "    if self._swapper is None:\n",
                "    self._copy(_in_parallel(plan.copies))\n    if self._swapper is None:\n",
            ),
            Edit(
                f"{MEMORY}:KVCache.apply",
                "        self._swapper.swap_in(_last_to_each(plan.swap_ins))\n"
                "    self._copy(_in_parallel(plan.copies))",
                "        self._swapper.swap_in(_last_to_each(plan.swap_ins))",
            ),
        ),
    ),
    Mutant(
        id="memory.swaps-in-first",
        bug="",
        statement="Swap-ins overwrite blocks before they are swapped out.",
        expects="swap.round-trip",
        trigger="a swap-in to a block that the same step swaps out",
        edits=(
            Edit(
                f"{MEMORY}:KVCache.apply",
                "        _move(self.device_pool, self.host_pool, plan.swap_outs)\n"
                "        _move(self.host_pool, self.device_pool, plan.swap_ins)\n",
                "        _move(self.host_pool, self.device_pool, plan.swap_ins)\n"
                "        _move(self.device_pool, self.host_pool, plan.swap_outs)\n",
            ),
        ),
    ),
    Mutant(
        id="memory.padding-wraps",
        bug="F16",
        statement="Padding, slot -1, writes the last slot of the last block.",
        expects="mem.writes-own-slots",
        trigger="a padded batch",
        edits=(
            Edit(
                "pagetwin.kernels.reference:write_kv",
                "    rows = (slot_mapping >= 0).nonzero().squeeze(1)\n",
                "    slot_mapping = slot_mapping % (kv_cache.shape[1] * kv_cache.shape[2])\n"
                "    rows = (slot_mapping >= 0).nonzero().squeeze(1)\n",
            ),
        ),
    ),
    Mutant(
        id="memory.padding-to-slot-zero",
        bug="G05",
        statement="Padding writes slot 0.",
        expects="mem.writes-own-slots",
        trigger="a padded batch",
        edits=(
            Edit(
                "pagetwin.kernels.reference:write_kv",
                "    rows = (slot_mapping >= 0).nonzero().squeeze(1)\n",
                "    slot_mapping = slot_mapping.clamp(min=0)\n"
                "    rows = (slot_mapping >= 0).nonzero().squeeze(1)\n",
            ),
        ),
    ),
    Mutant(
        id="memory.values-under-keys",
        bug="D16",
        statement="Values are written where keys go.",
        expects="mem.writes-own-slots",
        trigger="any write",
        edits=(
            Edit(
                "pagetwin.kernels.reference:write_kv",
                "zip(kv_cache.unbind(0), (k, v), strict=True)",
                "zip(kv_cache.unbind(0), (v, v), strict=True)",
            ),
        ),
    ),
)
