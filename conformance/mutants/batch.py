"""Mutants of the rows of the batch: who sits where, and with what."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

BATCH = "pagetwin.engine.input_batch:InputBatch"

BATCH_ROWS = (
    Mutant(
        id="batch.one-slot-too-many",
        bug="F02",
        statement="A sequence is said to be one token longer than it is, so that the slot behind "
        "its last token is read.",
        expects="mem.no-stale-read",
        trigger="any step",
        edits=(
            Edit(
                f"{BATCH}.build_inputs",
                "seq_lens=(starts + counts).astype",
                "seq_lens=(starts + counts + 1).astype",
            ),
        ),
        also_tried=("kv",),
    ),
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
)
