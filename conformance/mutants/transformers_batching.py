"""Mutants of another engine: transformers' continuous batching, through its adapter.

They fit one version of transformers; under another one they are left out, not adapted.
"""

from importlib.metadata import version

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

FITS = "5.24."
"""Beginning of the versions whose code these edits are of."""
BATCHING = "transformers.generation.continuous_batching"
FULL = f"{BATCHING}.cache_allocators.full_attention:FullAttentionCacheAllocator"
ALLOCATOR = f"{BATCHING}.cache_allocators.cache_allocator:CacheAllocator"

_ALL = (
    Mutant(
        id="hfcb.positions-without-hit",
        bug="C20",
        statement="Positions of a prompt behind a hit start at 0.",
        expects="mem.provenance",
        trigger="a prefix hit",
        edits=(
            Edit(
                f"{BATCHING}.scheduler:Scheduler._infer_request_tokens",
                "            state.position_offset += prefill_length\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="hfcb.writes-from-block-start",
        bug="",
        statement="A step writes from the start of its first block.",
        expects="life.ends",
        trigger="a second token in a block",
        edits=(
            Edit(
                f"{FULL}.get_write_indices",
                "local_start = start_offset if b == start_page else 0",
                "local_start = 0",
            ),
        ),
    ),
    Mutant(
        id="hfcb.block-late",
        bug="A15",
        statement="The need for blocks is computed without the newest token.",
        expects="life.no-crash",
        trigger="a length that crosses a block edge by one token",
        edits=(
            Edit(
                f"{FULL}._compute_blocks_needed",
                "total_length = past_length + query_length",
                "total_length = past_length + query_length - 1",
            ),
        ),
    ),
    Mutant(
        id="hfcb.values-of-keys",
        bug="D16",
        statement="Values are read from the keys' place.",
        expects="mem.provenance",
        trigger="any decode",
        edits=(
            Edit(
                f"{FULL}.update",
                "torch.index_select(v_cache, 0, read_index)",
                "torch.index_select(k_cache, 0, read_index)",
            ),
        ),
    ),
    Mutant(
        id="hfcb.hit-of-another-block",
        bug="C12",
        statement="A look-up that hits takes the first block of the hit again.",
        expects="mem.provenance",
        trigger="a hit of two blocks",
        edits=(
            Edit(
                f"{ALLOCATOR}.match_prefix_blocks",
                "    matched_blocks.append(block_id)\n",
                "    matched_blocks.append(matched_blocks[0] if matched_blocks else block_id)\n",
            ),
        ),
    ),
    Mutant(
        id="hfcb.key-of-first-token",
        bug="C02",
        statement="A block's key sees the first of its tokens alone.",
        expects="mem.provenance",
        trigger="two blocks that begin alike",
        edits=(
            Edit(
                f"{BATCHING}.cache_allocators.cache_allocator:compute_block_hash",
                'array("i", tokens)',
                'array("i", tokens[:1])',
            ),
        ),
    ),
    Mutant(
        id="hfcb.resume-without-output",
        bug="D01",
        statement="A request that gave way comes back with its prompt alone.",
        expects="mem.provenance",
        trigger="a preemption after the first token",
        edits=(
            Edit(
                f"{BATCHING}.requests:RequestState.create_equivalent_initial_request",
                "initial_tokens=self.initial_tokens + self.generated_tokens",
                "initial_tokens=self.initial_tokens[:]",
            ),
        ),
    ),
    Mutant(
        id="hfcb.one-token-early",
        bug="E02",
        statement="An output ends one token before its limit.",
        expects="life.length",
        trigger="an end by length",
        edits=(
            Edit(
                f"{BATCHING}.requests:RequestState.update_and_check_completion",
                "if is_eos or current_len >= self._new_tokens_limit:",
                "if is_eos or current_len + 1 >= self._new_tokens_limit:",
            ),
        ),
    ),
    Mutant(
        id="hfcb.hit-not-pinned",
        bug="A13",
        statement="The blocks of a hit are not counted as held.",
        expects="mem.provenance",
        trigger="a hit, and memory that runs short",
        edits=(
            Edit(
                f"{ALLOCATOR}.acquire_prefix_blocks",
                "        self.ledger.acquire(block_id)\n",
                "        pass\n",
            ),
        ),
    ),
)

TRANSFORMERS_BATCHING = _ALL if version("transformers").startswith(FITS) else ()
