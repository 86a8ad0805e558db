"""Mutants of the prefix cache: wrong, missing, early and stale hits, and wrong accounts of them."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

POOL = "pagetwin.engine.block_pool:BlockPool"
MANAGER = "pagetwin.engine.block_manager:BlockManager"
ADMISSION = "pagetwin.engine.admission:Admission"
KEYS = "pagetwin.engine.prefix_keys"

_TRUSTS_THE_HASH = Edit(
    f"{POOL}.find",
    "if block_id is None or self._keys[block_id] != key:",
    "if block_id is None:",
)

PREFIX_CACHE = (
    Mutant(
        id="cache.stale-hash",
        bug="C12",
        statement="A cached block that is taken for new content keeps its key.",
        expects="cache.hit-implies-equal",
        trigger="evict, reuse, and submit the first prompt again",
        edits=(
            Edit(f"{POOL}.take", "        self._forget(block_id)\n", ""),
            Edit(
                f"{POOL}.cache",
                "if key.key in self._cached or self._keys[block_id] is not None:",
                "if key.key in self._cached:",
            ),
        ),
    ),
    Mutant(
        id="cache.half-forgotten",
        bug="C12",
        statement="An evicted block loses its key, but the map still names it.",
        expects="cache.accounting",
        trigger="evict, and compute the same prompt again",
        edits=(Edit(f"{POOL}._forget", "    del self._cached[key.key]\n", ""),),
    ),
    Mutant(
        id="cache.published-early",
        bug="C11",
        statement="Blocks enter the cache when they are allocated, before they are computed.",
        expects="cache.accounting",
        trigger="two identical prompts in one step",
        edits=(
            Edit(
                f"{ADMISSION}._start_from",
                "    seq.num_computed_tokens = start\n",
                "    seq.num_computed_tokens = start\n"
                "    end = start + num_tokens\n"
                "    state.blocks.mark_computed(seq.seq_id, seq.keys, seq.token_ids, end)\n",
            ),
        ),
    ),
    Mutant(
        id="cache.whole-prompt-hit",
        bug="C09",
        statement="A fully cached prompt leaves no token to compute.",
        expects="sched.progress",
        trigger="a prompt of whole blocks, twice",
        edits=(
            Edit(
                f"{MANAGER}.lookup_prefix",
                "most = (len(token_ids) - 1) // self._size",
                "most = len(token_ids) // self._size",
            ),
        ),
    ),
    Mutant(
        id="cache.last-block-never-hits",
        bug="C09",
        statement="A hit ends a block early where one token would be left to compute.",
        expects="cache.equal-implies-hit",
        trigger="a prompt of whole blocks and one token, twice",
        edits=(
            Edit(
                f"{MANAGER}.lookup_prefix",
                "most = (len(token_ids) - 1) // self._size",
                "most = (len(token_ids) - 2) // self._size",
            ),
        ),
    ),
    Mutant(
        id="cache.low-byte-keys",
        bug="C02",
        statement="Keys see the low byte of each token id, and what a hit holds is not compared.",
        expects="cache.hit-implies-equal",
        trigger="prompts that differ by 256 in one id",
        edits=(
            Edit(
                f"{KEYS}:make_block_key",
                'array("q", token_ids).tobytes()',
                'array("q", [token & 0xFF for token in token_ids]).tobytes()',
            ),
            _TRUSTS_THE_HASH,
        ),
    ),
    Mutant(
        id="cache.no-parent",
        bug="",
        statement="A block's key does not depend on what stands before it.",
        expects="cache.equal-implies-hit",
        trigger="equal blocks behind different ones",
        edits=(
            Edit(
                f"{KEYS}:make_block_key",
                "parent + array(",
                "array(",
            ),
            _TRUSTS_THE_HASH,
        ),
    ),
    Mutant(
        id="cache.no-salt",
        bug="C04",
        statement="Keys leave out the cache salt: tenants share blocks.",
        expects="cache.hit-implies-equal",
        trigger="one prompt under two salts",
        edits=(
            Edit(
                f"{KEYS}:block_extras",
                "if index == 0 and request.cache_salt is not None:",
                "if index < 0 and request.cache_salt is not None:",
            ),
        ),
    ),
    Mutant(
        id="cache.no-adapter",
        bug="C04",
        statement="Keys leave out the adapter.",
        expects="cache.hit-implies-equal",
        trigger="one prompt with an adapter and without",
        edits=(
            Edit(
                f"{KEYS}:block_extras",
                "if request.adapter_id is not None:",
                "if index < 0 and request.adapter_id is not None:",
            ),
        ),
    ),
    Mutant(
        id="cache.adapter-in-first-block",
        bug="C04",
        statement="Only the first block's key has the adapter, as if it were a salt.",
        expects="cache.hit-implies-equal",
        trigger="equal later blocks",
        edits=(
            Edit(
                f"{KEYS}:block_extras",
                "if request.adapter_id is not None:",
                "if index == 0 and request.adapter_id is not None:",
            ),
        ),
        equivalent=(
            "Keys are a chain (docs/policy.md P4.6): block i's key is made from block i-1's, and "
            "block 0's has the adapter. Two requests of different adapters differ in the key of "
            "block 0 and so, SHA-256 collisions aside, in every later parent key; equal ones agree "
            "in all. A partial hit compares the parent key as well. The tag in later blocks adds "
            "nothing that the chain does not say."
        ),
    ),
    Mutant(
        id="cache.untagged-fields",
        bug="C06",
        statement="Salt and adapter go into keys under one tag.",
        expects="cache.hit-implies-equal",
        trigger="a salt that is spelled like an adapter",
        edits=(
            Edit(
                f"{KEYS}:block_extras",
                'extras.append(("adapter", request.adapter_id))',
                'extras.append(("salt", request.adapter_id))',
            ),
        ),
    ),
    Mutant(
        id="cache.media-alike",
        bug="C07",
        statement="Keys leave out what a picture shows.",
        expects="cache.hit-implies-equal",
        trigger="two pictures at one place of equal prompts",
        edits=(
            Edit(
                f"{KEYS}:block_extras",
                '            extras.append(("media", span.digest))\n',
                "",
            ),
        ),
    ),
    Mutant(
        id="cache.media-edge-late",
        bug="C08",
        statement="A picture that ends where a block begins counts as touching it.",
        expects="cache.equal-implies-hit",
        trigger="pictures that end on a block edge, before equal blocks",
        edits=(
            Edit(
                f"{KEYS}:block_extras",
                "span.offset + span.length > start",
                "span.offset + span.length >= start",
            ),
        ),
        equivalent=(
            "A picture that ends where block i begins touches block i-1, whose key has its digest "
            "and offset. Block i's key is made from that key, so requests that differ in the "
            "picture differ there already, and requests that agree in it get the same superfluous "
            "fields. The chain makes the second mention say nothing new; a partial hit compares "
            "the parent key and extras that both sides compute in the same way."
        ),
    ),
    Mutant(
        id="cache.media-edge-early",
        bug="C08",
        statement="A picture that begins at a block's last token does not count as touching it.",
        expects="cache.hit-implies-equal",
        trigger="a picture that begins at the last token of a block",
        edits=(Edit(f"{KEYS}:block_extras", "span.offset < end", "span.offset + 1 < end"),),
    ),
    Mutant(
        id="cache.stale-hit-length",
        bug="C10",
        statement="The tokens to schedule are counted before the hit is known.",
        expects="sched.budget",
        trigger="any hit",
        edits=(
            Edit(
                f"{ADMISSION}._start_from",
                "chunk(state.config, seq.num_tokens - start, start, draft.budget)",
                "chunk(state.config, seq.num_tokens, 0, draft.budget)",
            ),
        ),
    ),
    Mutant(
        id="cache.estimated-hit-charged",
        bug="C23",
        statement="A step's budget is charged without the tokens of its hits.",
        expects="sched.budget",
        trigger="hits and fresh prompts in one step, near the budget",
        edits=(
            Edit(
                f"{ADMISSION}._start_from",
                "    return True\n",
                "    draft.budget += start\n    return True\n",
            ),
        ),
    ),
    Mutant(
        id="cache.uncomputed-tokens",
        bug="C16",
        statement="Blocks are cached up to the known tokens, not the computed ones.",
        expects="cache.accounting",
        trigger="a chunk that ends before the prompt",
        edits=(
            Edit(
                f"{MANAGER}.mark_computed",
                "num_full = num_computed_tokens // self._size",
                "num_full = min(len(table.block_ids), len(token_ids) // self._size)",
            ),
        ),
    ),
    Mutant(
        id="cache.survives-reset",
        bug="C17",
        statement="A reset says that it is done and keeps every key.",
        expects="cache.accounting",
        trigger="a reset, and a prompt from before it",
        edits=(
            Edit(
                f"{POOL}.clear_cache",
                "    self._cached.clear()\n"
                "    self._siblings.clear()\n"
                "    self._keys = [None] * self.num_blocks\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="cache.reset-while-held",
        bug="C17",
        statement="A reset clears keys of blocks that sequences hold.",
        expects="cache.reset",
        trigger="a reset while a request runs",
        edits=(
            Edit(
                f"{POOL}.clear_cache",
                "if self.num_free != self.num_blocks - 1:",
                "if self.num_free > self.num_blocks - 1:",
            ),
        ),
    ),
    Mutant(
        id="cache.duplicate-freed",
        bug="C19",
        statement="A block whose content is cached elsewhere is freed while its table keeps it.",
        expects="life.no-crash",
        trigger="two identical prompts in one step",
        edits=(
            Edit(
                f"{POOL}.cache",
                "        return\n",
                "        if self._cached.get(key.key, block_id) != block_id:\n"
                "            self.release(block_id)\n"
                "        return\n",
            ),
        ),
    ),
    Mutant(
        id="cache.source-unpinned",
        bug="",
        statement="The source of a partial hit is held only after the new blocks were taken.",
        expects="kv.takes-free",
        trigger="a partial hit on a free block in a pool that fits exactly",
        edits=(
            Edit(
                f"{MANAGER}.allocate",
                "    if hit.num_partial:\n        self.pin(hit.source)\n",
                "",
            ),
            Edit(
                f"{MANAGER}.allocate",
                "    self._tables[seq_id] = table\n",
                "    self._tables[seq_id] = table\n"
                "    if hit.num_partial:\n"
                "        self.pin(hit.source)\n",
            ),
        ),
    ),
    Mutant(
        id="cache.partial-hits-all",
        bug="C09",
        statement="A partial hit may cover the last token as well.",
        expects="twin.lockstep",
        trigger="a prompt that is the beginning of a cached block",
        edits=(
            Edit(
                f"{MANAGER}.lookup_prefix",
                "limit = min(self._size - 1, len(token_ids) - 1 - start)",
                "limit = min(self._size - 1, len(token_ids) - start)",
            ),
        ),
    ),
    Mutant(
        id="cache.partial-one-too-many",
        bug="C18",
        statement="A partial hit counts the first token that differs.",
        expects="cache.hit-implies-equal",
        trigger="a prompt that diverges inside a cached block",
        edits=(
            Edit(
                f"{POOL}.find_partial",
                "run = _shared_run(key.token_ids, token_ids)",
                "run = min(len(token_ids), _shared_run(key.token_ids, token_ids) + 1)",
            ),
        ),
    ),
    Mutant(
        id="cache.partial-ties",
        bug="",
        statement="Of equally good sources of a partial hit the larger block id wins.",
        expects="cache.partial-hit",
        trigger="two cached blocks that share equally much",
        edits=(Edit(f"{POOL}.find_partial", "block_id < best", "block_id > best"),),
    ),
    Mutant(
        id="cache.no-op",
        bug="",
        statement="Nothing ever enters the cache: the hit rate is silently 0.",
        expects="cache.accounting",
        trigger="any full block",
        edits=(
            Edit(
                f"{MANAGER}.mark_computed",
                "range(table.num_marked, num_full)",
                "range(num_full, num_full)",
            ),
        ),
    ),
    Mutant(
        id="cache.counted-on-failure",
        bug="N02",
        statement="Hits are counted at each attempt to admit, not once.",
        expects="cache.accounting",
        trigger="a hit whose admission fails for want of blocks",
        edits=(
            Edit(
                f"{ADMISSION}._start",
                "if admitted and self._is_looked_up(seq):",
                "if self._is_looked_up(seq):",
            ),
        ),
    ),
    Mutant(
        id="cache.queries-not-counted",
        bug="N03",
        statement="Hits are counted, but tokens that were looked up and missed are not.",
        expects="cache.accounting",
        trigger="any admission",
        edits=(
            Edit(
                f"{ADMISSION}._start",
                "state.totals.prefix_queries += len(seq.token_ids)",
                "state.totals.prefix_queries += hit.num_tokens(state.cache.block_size)",
            ),
        ),
    ),
    Mutant(
        id="cache.logprobs-hit",
        bug="H16",
        statement="A request for prompt log-probabilities skips the cached part of its prompt.",
        expects="cache.equal-implies-hit",
        trigger="a cached prompt, and prompt log-probabilities",
        edits=(
            Edit(
                f"{ADMISSION}._is_looked_up",
                "        self._state.cache.enable_prefix_caching\n"
                "        and seq.group.request.sampling_params.prompt_logprobs is None\n",
                "        self._state.cache.enable_prefix_caching\n",
            ),
        ),
    ),
)
