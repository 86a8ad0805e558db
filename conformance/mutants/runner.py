"""Mutants of what runs a step: rows of the batch, attention, the KV memory's moves."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

BATCH = "pagetwin.engine.input_batch:InputBatch"
TORCH = "pagetwin.engine.attention.torch_backend"
TILES = "pagetwin.engine.attention.tiles:TilePlanner"
MEMORY = "pagetwin.engine.kv_cache"

RUNNER = (
    Mutant(
        id="batch.table-extended",
        bug="D04",
        statement="A sequence that returns has its blocks appended to its old row.",
        expects="batch.rebuild",
        trigger="a return after a preemption",
        edits=(
            Edit(
                f"{BATCH}._patch_table",
                "    start = self._num_blocks[row]\n",
                "    start = self._num_blocks[row] = self._num_blocks[row] + 1\n",
            ),
        ),
    ),
    Mutant(
        id="batch.replaced-ignored",
        bug="",
        statement="A block that a copy replaced stays in the row's table.",
        expects="batch.rebuild",
        trigger="a copy-on-write copy",
        edits=(
            Edit(
                f"{BATCH}._patch_table",
                "        self.block_tables[row, index] = block_id\n",
                "        pass\n",
            ),
        ),
    ),
    Mutant(
        id="batch.vacated-row-keeps-tokens",
        bug="E09",
        statement="A row that is given up keeps its tokens.",
        expects="batch.rebuild",
        trigger="a sequence ends",
        edits=(
            Edit(
                f"{BATCH}._vacate",
                "    self._token_ids[row, : self._num_tokens[row]] = 0\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="batch.vacated-row-keeps-blocks",
        bug="G04",
        statement="A row that is given up keeps its block table.",
        expects="batch.rebuild",
        trigger="a sequence ends",
        edits=(
            Edit(
                f"{BATCH}._vacate",
                "    self.block_tables[row, : self._num_blocks[row]] = 0\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="batch.shared-output-list",
        bug="E10",
        statement="A new row takes over the list of output tokens of the row's last owner.",
        expects="batch.rebuild",
        trigger="a row that is used again",
        edits=(
            Edit(
                f"{BATCH}._occupy",
                "    self._outputs[row] = list(sequence.token_ids[request.num_prompt_tokens :])\n",
                "    self._outputs[row] += sequence.token_ids[request.num_prompt_tokens :]\n",
            ),
            Edit(f"{BATCH}._vacate", "    self._outputs[row] = []\n", ""),
        ),
    ),
    Mutant(
        id="batch.outputs-from-zero",
        bug="H04",
        statement="After a return the sampler takes the whole text for output.",
        expects="batch.rebuild",
        trigger="a return after a preemption",
        edits=(
            Edit(
                f"{BATCH}._occupy",
                "list(sequence.token_ids[request.num_prompt_tokens :])",
                "list(sequence.token_ids[-request.num_prompt_tokens :])",
            ),
        ),
    ),
    Mutant(
        id="batch.late-token-kept",
        bug="D06",
        statement="A late token goes to whoever has the row now.",
        expects="batch.rebuild",
        trigger="a row that is used again while a token is under way",
        edits=(
            Edit(
                f"{BATCH}.append_tokens",
                "if token is None or row is None or self._sampling_rows[row] is not sampling_row:",
                "if token is None or row is None:",
            ),
        ),
        equivalent=(
            "Every caller appends a step's tokens before the next plan is applied (ModelRunner "
            "executes a step whole; GpuRunner hands results over in order), and names map to rows "
            "anew at each introduction: a sequence id whose row changed owner between draw and "
            "append cannot occur without a plan in between. The test guards a use that the engine "
            "does not make."
        ),
    ),
    Mutant(
        id="batch.rows-in-table-order",
        bug="E11",
        statement="A step's inputs are gathered by the place in the plan, not by row.",
        expects="batch.rebuild",
        trigger="a plan whose order is not that of the rows",
        edits=(
            Edit(
                f"{BATCH}.build_inputs",
                "rows = np.fromiter((self._row_of[s.seq_id] for s in scheduled), np.int32, size)",
                "rows = np.sort(np.fromiter((self._row_of[s.seq_id] for s in scheduled), np.int32, "
                "size))",
            ),
        ),
    ),
    Mutant(
        id="batch.positions-from-zero",
        bug="C20",
        statement="Positions of a chunk start at 0.",
        expects="batch.rebuild",
        trigger="a second chunk, or a hit",
        edits=(
            Edit(
                f"{BATCH}.build_inputs",
                "query_start_loc[:-1] - starts, counts",
                "query_start_loc[:-1], counts",
            ),
        ),
    ),
    Mutant(
        id="batch.slots-of-first-block",
        bug="F08",
        statement="Block ids are cut to their low three bits where slots are computed.",
        expects="batch.rebuild",
        trigger="a block id of 8 or more",
        edits=(
            Edit(
                f"{BATCH}.build_inputs",
                "self.block_tables[token_rows, blocks].astype(np.int64)",
                "(self.block_tables[token_rows, blocks] & 7).astype(np.int64)",
            ),
        ),
    ),
    Mutant(
        id="batch.draws-from-next-row",
        bug="E05",
        statement="A sequence draws from the first token of its chunk, not from the last.",
        expects="batch.rebuild",
        trigger="a chunk of two tokens that samples",
        edits=(
            Edit(
                "pagetwin.engine.draws:Draws.of",
                "last_tokens=inputs.query_start_loc[index + 1].astype(np.int64) - 1",
                "last_tokens=inputs.query_start_loc[index].astype(np.int64)",
            ),
        ),
    ),
    Mutant(
        id="batch.idle-row-draws",
        bug="E05",
        statement="Chunks that end before the prompt draw a token, too.",
        expects="batch.rebuild",
        trigger="a chunk that ends before the prompt",
        edits=(
            Edit(
                "pagetwin.engine.draws:Draws.of",
                "for index, sequence in enumerate(scheduled) if sequence.samples]",
                "for index, sequence in enumerate(scheduled) if sequence.seq_id]",
            ),
        ),
    ),
    Mutant(
        id="attn.scale-ignored",
        bug="",
        statement="Scores are scaled by 1 / sqrt(head_size), whatever the model says.",
        expects="num.attn",
        trigger="a scale of its own",
        edits=(
            Edit(
                f"{TORCH}:TorchBackend._inputs",
                "return _Inputs(q.view(num_tokens, keys.shape[1], -1, head_size), keys, values, "
                "scale)",
                "return _Inputs(q.view(num_tokens, keys.shape[1], -1, head_size), keys, values, "
                "head_size**-0.5)",
            ),
        ),
    ),
    Mutant(
        id="attn.bidirectional",
        bug="F17",
        statement="A chunk's rows see the tokens after them.",
        expects="num.attn",
        trigger="a chunk of two rows",
        edits=(
            Edit(
                f"{TILES}._chunk_tiles",
                "self._bias((keys <= queries) & (keys > queries - self._window))",
                "self._bias((keys < length) & (keys > queries - self._window))",
            ),
        ),
    ),
    Mutant(
        id="attn.window-one-more",
        bug="F09",
        statement="A decode row sees one token more than its window.",
        expects="num.attn",
        trigger="a decode longer than its window",
        edits=(
            Edit(
                f"{TILES}._decode_tiles",
                "(positions >= length - self._window)",
                "(positions >= length - self._window - 1)",
            ),
        ),
    ),
    Mutant(
        id="attn.window-chunk-one-less",
        bug="F09",
        statement="A chunk's rows see one token less than their window.",
        expects="num.attn",
        trigger="a chunk longer than its window",
        edits=(
            Edit(
                f"{TILES}._chunk_tiles",
                "(keys > queries - self._window)",
                "(keys > queries - self._window + 1)",
            ),
        ),
    ),
    Mutant(
        id="attn.reads-tail",
        bug="F02",
        statement="Slots beyond a sequence's end are read, and only their scores are masked.",
        expects="num.poison-free",
        trigger="NaN in the tail of a partly filled block",
        edits=(
            Edit(
                f"{TILES}._decode_tiles",
                "torch.where(visible, positions, length - 1)",
                "torch.where(positions < self._metadata.max_seq_len, positions, length - 1)",
            ),
        ),
    ),
    Mutant(
        id="attn.reads-before-window",
        bug="F03",
        statement="Values of tokens before the window are read, and only their scores masked.",
        expects="num.poison-free",
        trigger="NaN in blocks that the window has left",
        edits=(
            Edit(
                f"{TILES}._chunk_tiles",
                "readable = (keys < length) & (keys >= oldest)",
                "readable = keys < length",
            ),
        ),
    ),
    Mutant(
        id="attn.first-tile-only",
        bug="F04",
        statement="Of a decode's tiles the results are added up without their weights.",
        expects="num.attn",
        trigger="a decode of two tiles",
        edits=(
            Edit(
                f"{TORCH}:_Merged.add",
                "torch.exp(old_max - new_max), torch.exp(lse - new_max)",
                "torch.exp(old_max - new_max), torch.ones_like(lse)",
            ),
        ),
    ),
    Mutant(
        id="attn.lse-of-empty-is-zero",
        bug="F07",
        statement="Merging starts from weight exp(0) for what has no keys.",
        expects="num.attn",
        trigger="two tiles",
        edits=(
            Edit(
                f"{TORCH}:_Merged.__init__",
                "self._max = torch.full_like(self._weight, -torch.inf)",
                "self._max = torch.zeros_like(self._weight)\n    self._weight += 1",
            ),
        ),
    ),
    Mutant(
        id="attn.finite-mask",
        bug="F06",
        statement="Masked scores are lowered by 10 instead of being removed.",
        expects="num.attn",
        trigger="any mask",
        edits=(
            Edit(
                f"{TILES}._bias",
                'nothing.where(visible, float("-inf"))',
                "nothing.where(visible, -10.0)",
            ),
        ),
    ),
    Mutant(
        id="attn.group-index",
        bug="J05",
        statement="Query heads are dealt to the KV heads in turn, not in groups.",
        expects="num.attn",
        trigger="several query heads per KV head, several KV heads",
        edits=(
            Edit(
                f"{TORCH}:TorchBackend._inputs",
                "q.view(num_tokens, keys.shape[1], -1, head_size)",
                "q.view(num_tokens, -1, keys.shape[1], head_size).transpose(1, 2)",
            ),
        ),
    ),
    Mutant(
        id="attn.soft-cap-before-scale",
        bug="",
        statement="The soft cap is left out of scores.",
        expects="num.attn",
        trigger="a soft cap",
        edits=(
            Edit(
                f"{TORCH}:TorchBackend._attend",
                "torch.tanh(scores / self.spec.soft_cap) * self.spec.soft_cap",
                "scores.clamp(-self.spec.soft_cap, self.spec.soft_cap)",
            ),
        ),
    ),
    Mutant(
        id="attn.half-sums",
        bug="",
        statement="Merged sums are kept in bfloat16.",
        expects="num.attn",
        trigger="two tiles",
        edits=(
            Edit(
                f"{TORCH}:_Merged.result",
                "return self._sum / self._weight[..., None]",
                "return (self._sum / self._weight[..., None]).bfloat16().to(self._sum.dtype)",
            ),
        ),
    ),
    Mutant(
        id="attn.tables-by-place",
        bug="E11",
        statement="A sequence's blocks are looked up in the row of its place in the step.",
        expects="num.attn",
        trigger="rows that are not in the order of the step",
        edits=(
            Edit(
                f"{TILES}._slots",
                "rows = self._metadata.table_rows[sequence]",
                "rows = sequence",
            ),
        ),
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
