"""Mutants of waiting for prefixes: who is passed over, and what becomes of the line."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

ADMISSION = "pagetwin.engine.admission:Admission"
BLOCKS = "pagetwin.engine.awaited_blocks:BlocksBeingComputed"

WAITING = (
    Mutant(
        id="wait.for-nobody",
        bug="",
        statement="A request is passed over while any block is being computed, not only its next.",
        expects="sched.order",
        trigger="an unrelated request behind one that computes a block, and one behind that",
        edits=(
            Edit(
                f"{BLOCKS}.next_of",
                "if self._keys.get(key.key) == key else None",
                "if self._keys else None",
            ),
        ),
    ),
    Mutant(
        id="wait.never",
        bug="",
        statement="What the plan in the making computes is not awaited.",
        expects="sched.waits-for-prefix",
        trigger="two requests with a common first block at once",
        edits=(Edit(f"{BLOCKS}._update", "if self._num_added < len(scheduled):", "if False:"),),
    ),
    Mutant(
        id="wait.blind-to-the-step-in-flight",
        bug="",
        statement="What the step in flight computes is not awaited.",
        expects="sched.waits-for-prefix",
        trigger="asynchronous steps, and a request whose next block is in flight",
        edits=(
            Edit(
                f"{BLOCKS}.__init__",
                "[plan.scheduled for plan in state.in_flight]",
                "[plan.scheduled for plan in state.in_flight if False]",
            ),
        ),
    ),
    Mutant(
        id="wait.for-the-ended",
        bug="",
        statement="Blocks of a sequence that ended in flight are awaited, though it caches none.",
        expects="twin.lockstep",
        trigger="an abort in flight of one that computes what another waits for",
        edits=(
            Edit(
                f"{BLOCKS}._add",
                "    seq = self._state.sequences.get(entry.seq_id)\n",
                "    seq = self._state.sequences.get(entry.seq_id)\n"
                "        seq = seq or self._state.deferred.get(entry.seq_id)\n",
            ),
        ),
    ),
    Mutant(
        id="wait.placeholders-make-keys",
        bug="",
        statement="A block is taken for known though its last token is still in flight.",
        expects="life.no-crash",
        trigger="asynchronous steps, a token in flight that fills a block, and one that waits",
        edits=(
            Edit(
                f"{BLOCKS}._add",
                "min(start + entry.num_scheduled_tokens, len(seq.token_ids))",
                "start + entry.num_scheduled_tokens",
            ),
        ),
    ),
    Mutant(
        id="wait.first-block-overlooked",
        bug="",
        statement="Of the blocks that a step fills the first one is not awaited.",
        expects="sched.waits-for-prefix",
        trigger="two requests with a common first block at once",
        edits=(
            Edit(
                f"{BLOCKS}._add",
                "range(start // size, end // size)",
                "range(start // size + 1, end // size)",
            ),
        ),
    ),
    Mutant(
        id="wait.for-the-last-token",
        bug="C09",
        statement="A request waits for a block that holds its last token, which it cannot hit.",
        expects="twin.lockstep",
        trigger="two equal prompts of whole blocks at once",
        edits=(
            Edit(
                "pagetwin.engine.awaited_blocks:_most_hits",
                "(len(seq.token_ids) - 1) // block_size",
                "len(seq.token_ids) // block_size",
            ),
        ),
    ),
    Mutant(
        id="wait.logprobs",
        bug="H16",
        statement="A request for prompt log-probabilities waits for a block that it does not hit.",
        expects="sched.order",
        trigger="prompt log-probabilities, a common first block, and one behind",
        edits=(
            Edit(
                f"{ADMISSION}._waits",
                "self._is_looked_up(seq)",
                "self._state.cache.enable_prefix_caching",
            ),
        ),
    ),
    Mutant(
        id="wait.blocks-the-line",
        bug="",
        statement="Whoever waits for a prefix ends admission.",
        expects="twin.lockstep",
        trigger="a request that waits, and one behind it that need not",
        edits=(
            Edit(
                f"{ADMISSION}._start_waiting",
                "            waiting.pass_over()\n",
                "            break\n",
            ),
        ),
    ),
    Mutant(
        id="wait.places-first",
        bug="",
        statement="A group that finds too few places ends admission though it would wait anyway.",
        expects="twin.lockstep",
        trigger="n > 1 on a prefix that is being computed, few places, and one behind",
        edits=(
            Edit(
                f"{ADMISSION}._start_waiting",
                "        if awaited is not None:\n",
                "        if not self._fits_beside_running(seq):\n"
                "            break\n"
                "        if awaited is not None:\n",
            ),
        ),
    ),
    Mutant(
        id="wait.for-ever",
        bug="",
        statement="Whoever is passed over once never stands in line again.",
        expects="sched.progress",
        trigger="a request that waits",
        edits=(Edit(f"{ADMISSION}._start_waiting", "    waiting.rejoin()\n", ""),),
    ),
    Mutant(
        id="wait.at-the-end-of-the-line",
        bug="",
        statement="Whoever is passed over goes behind all that wait.",
        expects="sched.order",
        trigger="a request that waits, and others that stay in line behind it",
        edits=(
            Edit(
                "pagetwin.engine.queues:AdmissionQueue.rejoin",
                "heapq.heappush(self._heap, entry)",
                "heapq.heappush(self._heap, ((2, *entry[0]), *entry[1:]))",
            ),
        ),
    ),
)
