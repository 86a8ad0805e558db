"""Mutants of a request's life: when it ends, with which reason, and what remains of it."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

CHECK = "pagetwin.engine.stopping:StopConditions.check"
LIMIT = "pagetwin.engine.stopping:StopConditions.token_limit"
GROUP = "pagetwin.engine.sequence:SequenceGroup.__init__"
STATE = "pagetwin.engine.scheduler_state:SchedulerState"
SCHEDULER = "pagetwin.engine.scheduler:Scheduler"
CLOSER = "pagetwin.engine.closing:Closer"

LIFECYCLE = (
    Mutant(
        id="life.one-token-too-many",
        bug="E02",
        statement="A sequence ends one token after max_tokens or max_model_len.",
        expects="life.stops",
        trigger="any end by length",
        edits=(Edit(CHECK, "num_tokens >= group.token_limit", "num_tokens > group.token_limit"),),
    ),
    Mutant(
        id="life.max-tokens-minus-one",
        bug="",
        statement="max_tokens ends a sequence one token early.",
        expects="life.stops",
        trigger="max_tokens above 1",
        edits=(
            Edit(
                LIMIT,
                "request.num_prompt_tokens + max_tokens",
                "request.num_prompt_tokens + max(1, max_tokens - 1)",
            ),
        ),
    ),
    Mutant(
        id="life.outgrows-the-pool",
        bug="D17",
        statement="A sequence alone in the pool is not ended when it outgrows it.",
        expects="life.stops",
        trigger="one sequence that fills the pool",
        edits=(
            Edit(
                "pagetwin.engine.stopping:StopConditions.__init__",
                "self._max_tokens = min(scheduler.max_model_len, self._pool_tokens + 1)",
                "self._max_tokens = scheduler.max_model_len",
            ),
        ),
    ),
    Mutant(
        id="life.min-tokens-early",
        bug="H08",
        statement="A stop token counts one token before min_tokens are there.",
        expects="life.stops",
        trigger="min_tokens, and EOS right at its edge",
        edits=(Edit(CHECK, "num_tokens > group.first_stop", "num_tokens >= group.first_stop"),),
    ),
    Mutant(
        id="life.minimum-counts-the-prompt",
        bug="H08",
        statement="min_tokens counts the prompt's tokens as well.",
        expects="life.min-tokens",
        trigger="min_tokens, and a stop token before it",
        edits=(
            Edit(
                GROUP,
                "request.num_prompt_tokens + params.min_tokens",
                "max(request.num_prompt_tokens, params.min_tokens)",
            ),
        ),
        also_tried=("answers",),
    ),
    Mutant(
        id="life.eos-only-without-stop-tokens",
        bug="",
        statement="A request with stop tokens of its own does not end at an end of sequence.",
        expects="life.eos-cuts",
        trigger="both, and the end of sequence first",
        edits=(
            Edit(
                GROUP,
                "if not params.ignore_eos:",
                "if not params.ignore_eos and not self.stop_reasons:",
            ),
        ),
        also_tried=("answers",),
    ),
    Mutant(
        id="life.min-tokens-late",
        bug="H08",
        statement="One token more than min_tokens is forced.",
        expects="life.stops",
        trigger="EOS as the first token",
        edits=(Edit(CHECK, "num_tokens > group.first_stop", "num_tokens > group.first_stop + 1"),),
    ),
    Mutant(
        id="life.first-eos-only",
        bug="H09",
        statement="Only the first of several EOS ids ends a sequence.",
        expects="life.stops",
        trigger="a second EOS id",
        edits=(
            Edit(
                GROUP,
                "dict.fromkeys(request.eos_token_ids)",
                "dict.fromkeys(request.eos_token_ids[:1])",
            ),
        ),
    ),
    Mutant(
        id="life.eos-not-ignored",
        bug="",
        statement="ignore_eos has no effect.",
        expects="life.stops",
        trigger="ignore_eos, and EOS",
        edits=(Edit(GROUP, "if not params.ignore_eos:", "if request.eos_token_ids:"),),
    ),
    Mutant(
        id="life.reason-is-stop",
        bug="L10",
        statement="Every end is reported as a stop.",
        expects="life.stops",
        trigger="any end by length",
        edits=(Edit(CHECK, '("length", None)', '("stop", None)'),),
    ),
    Mutant(
        id="life.string-before-token",
        bug="L10",
        statement="A stop token that completes a stop string does not count as a stop token.",
        expects="life.stops",
        trigger="a stop token that completes a stop string",
        edits=(
            Edit(
                CHECK,
                "        if token in group.stop_reasons:\n",
                "        if token in group.stop_reasons and stop_string is None:\n",
            ),
        ),
    ),
    Mutant(
        id="life.length-before-stop",
        bug="L10",
        statement="A stop token at the very limit is reported as length.",
        expects="life.stops",
        trigger="EOS as the last token that max_tokens allows",
        edits=(
            Edit(
                CHECK,
                "if num_tokens > group.first_stop:",
                "if group.first_stop < num_tokens < group.token_limit:",
            ),
        ),
    ),
    Mutant(
        id="life.abort-of-nothing",
        bug="E06",
        statement="An abort of a request that has ended counts as one that found it.",
        expects="history.readable",
        trigger="an abort after the end",
        edits=(
            Edit(
                f"{SCHEDULER}.abort_request",
                "        return False\n",
                "        return True\n",
            ),
        ),
    ),
    Mutant(
        id="life.blocks-freed-in-flight",
        bug="E13",
        statement="Blocks that a step in flight writes are freed, and may be issued again.",
        expects="kv.conservation",
        trigger="an end while the next step is in flight",
        edits=(
            Edit(
                f"{STATE}.end",
                "if self.in_flight and seq.last_step >= self.in_flight[0].step:",
                "if not self.in_flight and seq.last_step >= self.next_step:",
            ),
        ),
    ),
    Mutant(
        id="life.aborts-uncounted",
        bug="N06",
        statement="Aborts are not counted.",
        expects="sched.counters",
        trigger="an abort",
        edits=(Edit(f"{SCHEDULER}.abort_request", "    state.totals.aborts += 1\n", ""),),
    ),
    Mutant(
        id="life.gauge-sticks",
        bug="N07",
        statement="Sequences that have ended still count as running.",
        expects="sched.counters",
        trigger="any end",
        edits=(
            Edit(
                f"{STATE}.end",
                "        self.num_running -= seq.weight\n",
                "        self.num_running -= 0\n",
            ),
        ),
    ),
    Mutant(
        id="life.row-of-the-dead",
        bug="B02",
        statement="The executor is not told to forget the row of a sequence that ended.",
        expects="twin.lockstep",
        trigger="any end",
        edits=(Edit(f"{STATE}.end", "    self.drop_row(seq)\n", ""),),
    ),
    Mutant(
        id="life.request-not-ended",
        bug="A09",
        statement="The executor is never told that a request has ended.",
        expects="twin.lockstep",
        trigger="any end",
        edits=(
            Edit(
                f"{STATE}.forget_if_ended",
                "            self.ended_requests.add(group.request.request_id)\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        id="life.group-ends-with-first",
        bug="L11",
        statement="A group is forgotten when its first sample ends, and no abort finds the rest.",
        expects="life.no-crash",
        trigger="n > 1, one sample ends, an abort",
        edits=(
            Edit(
                f"{STATE}.forget_if_ended",
                "if all(seq.status.is_finished for seq in group.sequences):",
                "if any(seq.status.is_finished for seq in group.sequences):",
            ),
        ),
    ),
    Mutant(
        id="life.ended-runs-on",
        bug="",
        statement="A sequence that has ended stays among the running ones.",
        expects="life.no-crash",
        trigger="any end",
        edits=(
            Edit(
                f"{CLOSER}.close",
                "    if self._finished:\n",
                "    if len(self._finished) > 1:\n",
            ),
        ),
    ),
    Mutant(
        id="life.results-out-of-order",
        bug="D07",
        statement="A failed row is taken for a token.",
        expects="life.no-crash",
        trigger="a row that fails",
        edits=(
            Edit(
                f"{CLOSER}._append",
                "if seq_id in result.failed:",
                "if seq_id not in result.sampled and not result.failed:",
            ),
        ),
    ),
)
