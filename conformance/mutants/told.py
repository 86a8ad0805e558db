"""Mutants of what clients are told beside text, and of what is made of what they ask."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

ENGINE = "pagetwin.engine."

TOLD = (
    Mutant(
        id="told.prompt-scores-shifted",
        bug="",
        statement=("Log-probabilities of a prompt stand one position too early."),
        expects="text.reported",
        trigger="a request for the log-probabilities of its prompt",
        edits=(
            Edit(
                f"{ENGINE}output_processor:OutputProcessor.process",
                ("scheduled.num_computed_tokens + 1, entries"),
                ("scheduled.num_computed_tokens, entries"),
            ),
        ),
    ),
    Mutant(
        id="told.prompt-scores-in-each-piece",
        bug="",
        statement=("Each piece of a stream has the prompt's log-probabilities again."),
        expects="text.reported",
        trigger="a stream of two pieces that asks for them",
        edits=(
            Edit(
                f"{ENGINE}live_request:LiveRequest.output",
                ("        self.sent_prompt_logprobs = True\n"),
                (""),
            ),
        ),
    ),
    Mutant(
        id="told.worst-of-many",
        bug="",
        statement=("Of more samples than asked for the unlikeliest are handed out."),
        expects="text.reported",
        trigger="best_of above n",
        edits=(
            Edit(
                f"{ENGINE}live_request:LiveRequest._completions",
                ("-sample.cumulative_logprob"),
                ("sample.cumulative_logprob"),
            ),
        ),
    ),
    Mutant(
        id="told.first-token-waits",
        bug="",
        statement=("A stream's first token waits for stream_interval, too."),
        expects="text.intervals",
        trigger="a stream_interval above 1",
        edits=(
            Edit(
                f"{ENGINE}live_request:LiveRequest.is_due",
                ("(params.stream_interval if sample.num_sent_tokens else 1)"),
                ("params.stream_interval"),
            ),
        ),
    ),
    Mutant(
        id="told.one-token-late",
        bug="",
        statement=("A piece comes when one token more than stream_interval waits."),
        expects="text.intervals",
        trigger="a stream",
        edits=(
            Edit(
                f"{ENGINE}live_request:LiveRequest.is_due",
                ("sample.num_unsent_tokens >= "),
                ("sample.num_unsent_tokens > "),
            ),
        ),
    ),
    Mutant(
        id="told.sum-of-the-likeliest",
        bug="",
        statement=("The sum of log-probabilities is of each position's likeliest token."),
        expects="text.reported",
        trigger="a token that is not the likeliest",
        edits=(
            Edit(
                f"{ENGINE}live_request:_Sample.append",
                ("logprobs.logprobs[0]"),
                ("max(logprobs.logprobs)"),
            ),
        ),
    ),
    Mutant(
        id="told.cached-of-the-last-return",
        bug="",
        statement=("Cached tokens are those of the last admission, not of the first."),
        expects="text.reported",
        trigger="a preempted request that finds its own blocks again",
        edits=(
            Edit(
                f"{ENGINE}output_processor:OutputProcessor._note_plan",
                (" and live.num_cached_tokens is None"),
                (""),
            ),
        ),
    ),
    Mutant(
        id="told.scores-repeated",
        bug="",
        statement=("Each piece of a stream has the log-probabilities of all tokens so far."),
        expects="text.reported",
        trigger="a stream with log-probabilities",
        edits=(
            Edit(
                f"{ENGINE}live_request:_Sample.output",
                ("tuple(self.logprobs[first_token:])"),
                ("tuple(self.logprobs)"),
            ),
        ),
    ),
    Mutant(
        id="told.prompt-cut-at-its-end",
        bug="",
        statement=("A prompt that is too long loses its end, not its beginning."),
        expects="life.as-asked",
        trigger="truncate_prompt_tokens below the prompt",
        edits=(
            Edit(
                f"{ENGINE}llm_engine:LLMEngine._truncated",
                ("token_ids[-limit:]"),
                ("token_ids[:limit]"),
            ),
        ),
    ),
    Mutant(
        id="told.bad-word-in-one-form",
        bug="",
        statement=("A bad word is banned at the start of a text, and not behind a space."),
        expects="life.as-asked",
        trigger="a bad word",
        edits=(
            Edit(
                f"{ENGINE}llm_engine:LLMEngine._bad_words",
                ('(word, " " + word.lstrip())'),
                ("(word,)"),
            ),
        ),
    ),
    Mutant(
        id="told.salt-dropped",
        bug="",
        statement=("A client's cache salt does not reach the scheduler."),
        expects="life.as-asked",
        trigger="a request with a salt",
        edits=(
            Edit(
                f"{ENGINE}llm_engine:LLMEngine.add_request",
                ("cache_salt=cache_salt"),
                ("cache_salt=None"),
            ),
        ),
    ),
    Mutant(
        id="told.priority-dropped",
        bug="",
        statement=("A client's priority does not reach the scheduler."),
        expects="life.as-asked",
        trigger="a request with a priority",
        edits=(
            Edit(
                f"{ENGINE}llm_engine:LLMEngine.add_request",
                ("priority=priority,\n        eos"),
                ("eos"),
            ),
        ),
    ),
    Mutant(
        id="told.first-abort-only",
        bug="",
        statement=("Of several requests that are aborted at once the first is."),
        expects="text.intervals",
        trigger="an abort of two",
        edits=(
            Edit(
                f"{ENGINE}llm_engine:LLMEngine.abort_request",
                ("[request_ids] if isinstance(request_ids, str) else request_ids"),
                ("[request_ids] if isinstance(request_ids, str) else list(request_ids)[:1]"),
            ),
        ),
    ),
    Mutant(
        id="told.aborts-told-one-by-one",
        bug="",
        statement=("Of several aborted requests one is told of its end in each step."),
        expects="text.intervals",
        trigger="an abort of two",
        edits=(
            Edit(
                f"{ENGINE}llm_engine:LLMEngine._outputs_after",
                ("outputs, self._pending = self._pending, []"),
                ("outputs, self._pending = self._pending[:1], self._pending[1:]"),
            ),
        ),
    ),
    Mutant(
        id="told.first-failure-only",
        bug="",
        statement=("Of the requests that a failed step ends the first alone is told."),
        expects="fault.execution",
        trigger="a step of two that fails",
        edits=(
            Edit(
                f"{ENGINE}llm_engine:LLMEngine._outputs_after",
                ("outputs += [output for output in ended if output is not None]"),
                ("outputs += [output for output in ended[:1] if output is not None]"),
            ),
        ),
        also_tried=("faults",),
    ),
    Mutant(
        id="told.plans-ahead-unasked",
        bug="",
        statement=("Without asynchronous scheduling, too, a step is planned ahead."),
        expects="sched.one-in-flight",
        trigger="two steps",
        edits=(
            Edit(
                f"{ENGINE}core:EngineCore.step",
                (
                    "if self.config.scheduler.async_scheduling and started and "
                    "len(self._in_flight) == 1:"
                ),
                ("if started and len(self._in_flight) == 1:"),
            ),
        ),
        also_tried=("reports",),
    ),
)
