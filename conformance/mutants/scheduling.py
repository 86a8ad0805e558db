"""Mutants of planning: budgets, order, chunks, and what may run beside a step in flight."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

ADMISSION = "pagetwin.engine.admission:Admission"
PLAN_DRAFT = "pagetwin.engine.plan_draft:PlanDraft"
CHUNK = "pagetwin.engine.plan_draft:chunk"
PLANNER = "pagetwin.engine.planning:Planner"
SCHEDULER = "pagetwin.engine.scheduler:Scheduler"

SCHEDULING = (
    Mutant(
        id="sched.budget-plus-one",
        bug="",
        statement="A step may hold one token more than its budget.",
        expects="sched.budget",
        trigger="more work than the budget",
        edits=(Edit(CHUNK, "min(behind, budget, ", "min(behind, budget + 1, "),),
    ),
    Mutant(
        id="sched.group-overfills",
        bug="",
        statement="A group is admitted though its samples do not fit max_num_seqs.",
        expects="sched.budget",
        trigger="a request with n > 1 when few places are left",
        edits=(
            Edit(
                f"{ADMISSION}._fits_beside_running",
                "self._state.num_running + seq.weight",
                "self._state.num_running + 1",
            ),
        ),
    ),
    Mutant(
        id="sched.one-place-unused",
        bug="",
        statement="Admission stops one sequence before max_num_seqs.",
        expects="twin.lockstep",
        trigger="as many requests as places",
        edits=(
            Edit(
                f"{ADMISSION}._has_room",
                "self._state.config.max_num_seqs",
                "max(1, self._state.config.max_num_seqs - 1)",
            ),
        ),
    ),
    Mutant(
        id="sched.skips-a-sequence",
        bug="D09",
        statement="After a preemption the next running sequence is passed over.",
        expects="twin.lockstep",
        trigger="a preemption with another running sequence behind",
        edits=(
            Edit(
                f"{PLANNER}._plan_running",
                "        if draft.budget <= 0:\n",
                "        if draft.preempted and seq is not self._state.running[0]:\n"
                "            continue\n"
                "        if draft.budget <= 0:\n",
            ),
        ),
    ),
    Mutant(
        id="sched.long-prompt-waits",
        bug="E04",
        statement="A prompt above the budget is not cut into chunks and waits for ever.",
        expects="sched.progress",
        trigger="a prompt above the budget",
        edits=(
            Edit(
                CHUNK,
                "if not config.enable_chunked_prefill and granted < behind:",
                "if granted < behind:",
            ),
        ),
    ),
    Mutant(
        id="sched.chunks-though-off",
        bug="",
        statement="With chunked prefill off, a prompt is cut all the same.",
        expects="sched.budget",
        trigger="two prompts that together exceed the budget",
        edits=(
            Edit(
                CHUNK,
                "        if not config.enable_chunked_prefill and granted < behind:\n"
                "            return 0\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="sched.threshold-ignored",
        bug="",
        statement="long_prefill_token_threshold has no effect.",
        expects="sched.budget",
        trigger="a prompt above the threshold",
        edits=(
            Edit(
                CHUNK,
                "if config.long_prefill_token_threshold:",
                "if config.long_prefill_token_threshold > behind:",
            ),
        ),
    ),
    Mutant(
        id="sched.waiting-first",
        bug="",
        statement="Waiting sequences are admitted before swapped-out ones.",
        expects="sched.order",
        trigger="a swapped-out sequence and a waiting one",
        edits=(
            Edit(
                f"{ADMISSION}.admit",
                "    if self._restore_swapped(draft):\n        self._start_waiting(draft)\n",
                "    self._start_waiting(draft)\n    self._restore_swapped(draft)\n",
            ),
        ),
    ),
    Mutant(
        id="sched.second-line-goes-on",
        bug="",
        statement="A swapped-out sequence that does not fit no longer blocks the waiting ones.",
        expects="sched.order",
        trigger="a swapped-out sequence that does not fit, and a small one that waits",
        edits=(
            Edit(
                f"{ADMISSION}.admit",
                "    if self._restore_swapped(draft):\n        self._start_waiting(draft)\n",
                "    self._restore_swapped(draft)\n    self._start_waiting(draft)\n",
            ),
        ),
    ),
    Mutant(
        id="sched.watermark-ignored",
        bug="",
        statement="Admission keeps no blocks free.",
        expects="twin.lockstep",
        trigger="a watermark, and a pool that is nearly full",
        edits=(
            Edit(
                f"{ADMISSION}._watermark",
                "self._state.cache.watermark_blocks if self._state.running else 0",
                "0",
            ),
        ),
    ),
    Mutant(
        id="sched.watermark-for-ever",
        bug="A08",
        statement="The watermark holds on an empty engine, too, where nothing will ever be freed.",
        expects="sched.progress",
        trigger="a prompt that fits only without the watermark",
        edits=(
            Edit(
                f"{ADMISSION}._watermark",
                "self._state.cache.watermark_blocks if self._state.running else 0",
                "self._state.cache.watermark_blocks",
            ),
        ),
    ),
    Mutant(
        id="sched.ties-by-chance",
        bug="",
        statement="Of requests with equal keys the one submitted first goes first, not by id.",
        expects="sched.order",
        trigger="two requests of one arrival, the later id submitted first",
        edits=(
            Edit(
                "pagetwin.engine.policies:order_key",
                "(*policy(request), request.arrival_s, request.request_id)",
                "(*policy(request), request.arrival_s)",
            ),
        ),
    ),
    Mutant(
        id="sched.priority-ignored-on-return",
        bug="",
        statement="Under priority, sequences run in the order of admission.",
        expects="twin.lockstep",
        trigger="an urgent request admitted after others",
        edits=(
            Edit(
                "pagetwin.engine.scheduler_state:SchedulerState.start_running",
                "if self.is_fcfs:",
                "if self.config.max_num_seqs:",
            ),
        ),
    ),
    Mutant(
        id="sched.placeholder-lost",
        bug="D07",
        statement="A token that is still in flight is not counted as known.",
        expects="twin.lockstep",
        trigger="a decode step planned with one in flight",
        edits=(
            Edit(
                f"{PLAN_DRAFT}.schedule",
                "        seq.num_placeholders += 1\n",
                "        seq.num_placeholders += 0\n",
            ),
        ),
    ),
    Mutant(
        id="sched.runs-past-its-limit",
        bug="E02",
        statement="A step is planned for a sequence whose last token is in flight.",
        expects="twin.lockstep",
        trigger="asynchronous steps, and a sequence one token before its limit",
        edits=(
            Edit(
                f"{PLANNER}._must_wait",
                "return seq.num_placeholders > 0 and seq.num_tokens >= seq.group.token_limit",
                "return seq.num_placeholders > 0 and seq.num_tokens > seq.group.token_limit",
            ),
        ),
    ),
    Mutant(
        id="sched.every-chunk-samples",
        bug="E05",
        statement="A chunk that ends before the last known token samples as well.",
        expects="sched.samples-at-end",
        trigger="a prompt in two chunks",
        edits=(
            Edit(
                f"{PLAN_DRAFT}.introduce",
                "samples = start + num_tokens == seq.num_tokens",
                "samples = start + num_tokens <= seq.num_tokens",
            ),
        ),
    ),
    Mutant(
        id="sched.chunk-overlaps",
        bug="",
        statement="A sequence's next chunk repeats the last token of the one before.",
        expects="sched.contiguous",
        trigger="a prompt in two chunks",
        edits=(
            Edit(
                f"{PLAN_DRAFT}.schedule",
                "seq.num_computed_tokens += num_tokens",
                "seq.num_computed_tokens += max(1, num_tokens - (num_tokens > 2))",
            ),
        ),
    ),
    Mutant(
        id="sched.prompt-fills-model",
        bug="E01",
        statement="A prompt that leaves no room for one output token is accepted.",
        expects="sched.admission-feasible",
        trigger="a prompt of max_model_len tokens",
        edits=(
            Edit(
                f"{SCHEDULER}._check_feasible",
                "if num_prompt + 1 > config.max_model_len:",
                "if num_prompt > config.max_model_len:",
            ),
        ),
    ),
    Mutant(
        id="sched.full-prompt-refused",
        bug="E01",
        statement="A prompt that leaves room for exactly one token is refused.",
        expects="sched.admission-feasible",
        trigger="a prompt of max_model_len - 1 tokens",
        edits=(
            Edit(
                f"{SCHEDULER}._check_feasible",
                "if num_prompt + 1 > config.max_model_len:",
                "if num_prompt + 2 > config.max_model_len:",
            ),
        ),
    ),
    Mutant(
        id="sched.too-many-samples-wait",
        bug="E04",
        statement="A request with more samples than max_num_seqs is accepted and waits for ever.",
        expects="sched.admission-feasible",
        trigger="n above max_num_seqs",
        edits=(
            Edit(
                f"{SCHEDULER}._check_feasible",
                "if request.num_samples > config.max_num_seqs:",
                "if request.num_samples > 2 * config.max_num_seqs:",
            ),
        ),
    ),
    Mutant(
        id="sched.in-flight-fit-ignores-copies",
        bug="I10",
        statement="A step planned ahead does not count the copies that it will need.",
        expects="twin.lockstep",
        trigger="samples that diverge with a step in flight, in a full pool",
        edits=(
            Edit(
                f"{PLANNER}._fits_without_preemption",
                "missing += state.blocks.num_missing(seq.seq_id, start, end)",
                "missing += max(0, -(-end // block_size) - "
                "len(state.blocks.get_block_table(seq.seq_id)))",
            ),
        ),
    ),
)
