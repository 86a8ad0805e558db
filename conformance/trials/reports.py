"""What clients are told beside text: scores, the prompt's, ranks among samples, cached tokens, and
when they are told it.

An engine of integers makes up a log-probability for each token out of the token and its position,
so that one that stands at another's place is known by its value. What each client must hear follows
from the requests and from what each step drew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec

from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.experiments.scenarios import twin_differences
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.tiny_tokenizer import TinyTokenizer
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.core import CompletedStep
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.outputs import CompletionOutput, RequestOutput
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampling_params import OutputKind, SamplingParams
from pagetwin.engine.step import StepPlan, StepResult, TokenLogprobs
from pagetwin.engine.trace import HistoryWriter, SubmitRecord

REPORTED = "text.reported"
INTERVALS = "text.intervals"
AS_ASKED = "life.as-asked"
VOCAB_SIZE = 9
MAX_MODEL_LEN = 40
TOKENIZER = TinyTokenizer((b"a", b"b", b" ", b" b", *(bytes((c,)) for c in b"cdefg")))


def score_of(position: int, token: int) -> float:
    """A made-up log-probability, exact in float32, that no other position or token has."""
    return -(position * 16 + token * 7 % 16 + 1) / 8


def report_of(position: int, token: int) -> TokenLogprobs:
    """The token's own score first, and that of the token after it."""
    other = (token + 1) % VOCAB_SIZE
    scores = score_of(position, token), score_of(position, other)
    return TokenLogprobs(token_ids=(token, other), logprobs=scores, ranks=(2, 1))


class ScoringExecutor(FingerprintExecutor):
    """Reports what requests ask for, as a model runner does."""

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        scores: dict[str, TokenLogprobs] = {}
        of_prompts: dict[str, tuple[TokenLogprobs, ...]] = {}
        for one in plan.scheduled:
            request = self._requests[one.seq_id.rpartition("/")[0]]
            start, end = (
                one.num_computed_tokens,
                one.num_computed_tokens + one.num_scheduled_tokens,
            )
            known = request.prompt_token_ids
            following = range(start + 1, min(end + 1, len(known)))
            if request.sampling_params.prompt_logprobs is not None and following:
                of_prompts[one.seq_id] = tuple(report_of(at, known[at]) for at in following)
            if request.sampling_params.num_logprobs is not None and one.samples:
                for index in range(request.num_samples):
                    name = sequence_id(request.request_id, index)
                    if name == one.seq_id or end == len(known):
                        scores[name] = report_of(end, result.sampled[name])
        return msgspec.structs.replace(result, logprobs=scores, prompt_logprobs=of_prompts)


@dataclass
class _Sample:
    """What a sample has drawn, and what its client has heard."""

    drawn: list[int] = field(default_factory=list)
    heard: list[int] = field(default_factory=list)
    end: str = ""
    """Why it has ended; empty while it goes on."""
    end_heard: bool = False


@dataclass
class _Client:
    """One request as asked, and how far it has come."""

    request: Request
    samples: list[_Sample]
    prompt_heard: int = 0
    num_cached_tokens: int = 0
    has_started: bool = False
    is_over: bool = False

    @property
    def is_ranked(self) -> bool:
        return self.request.sampling_params.num_samples > self.request.sampling_params.n


def judge_reports(seed: int, index: int) -> list[Violation]:
    """A few requests over one engine under memory pressure, with all that they may ask to hear."""
    random = Random(f"reports {seed} {index}")
    cache = CacheConfig(num_blocks=random.choice((12, 16, 40)), block_size=4)
    limits = SchedulerConfig(
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=8,
        max_num_batched_tokens=random.choice((8, 16, 64)),
        policy=random.choice(("fcfs", "priority")),
        async_scheduling=random.random() < 0.3,
    )
    history = HistoryWriter(keep=True)
    engine = LLMEngine(
        EngineConfig(cache=cache, scheduler=limits),
        ScoringExecutor(cache, vocab_size=VOCAB_SIZE),
        vocab_size=VOCAB_SIZE,
        tokenizer=TOKENIZER,
        history=history,
        clock=lambda: 7.0,
    )
    run = _Run(engine)
    try:
        for number in range(random.randint(1, 5)):
            run.ask(_Asked.of(random, f"r{number}", limits))
        run.finish(random)
    except Exception as error:  # whatever it is: the requests are valid ones
        message = f"the engine raised {type(error).__name__}: {error}"
        return [*run.found, violation("life.no-crash", -1, message)]
    submitted = [one.request for one in history.records if isinstance(one, SubmitRecord)]
    run.found += [*check_all(history.records), *twin_differences(history.records)]
    due = [client.request for client in run.clients.values()]
    if submitted != due:
        wrong = [pair for pair in zip(submitted, due, strict=False) if pair[0] != pair[1]]
        run.found.append(violation(AS_ASKED, -1, "other requests are scheduled", wrong=wrong[:1]))
    return run.found


@dataclass(frozen=True)
class _Asked:
    """A request in the words of a client."""

    name: str
    prompt: list[int]
    params: SamplingParams
    priority: int
    salt: str | None
    arrival_s: float | None

    @classmethod
    def of(cls, random: Random, name: str, limits: SchedulerConfig) -> "_Asked":
        best_of = random.choice((None, None, None, 3))
        n = random.choice((1, 1, 2))
        kinds: tuple[OutputKind, ...] = ("cumulative", "delta", "delta")
        if best_of:
            kinds = ("final_only", "cumulative")
        longest = MAX_MODEL_LEN - 1
        truncate = random.choice((None, None, 1, 3, -1))
        params = SamplingParams(
            n=n,
            best_of=best_of,
            max_tokens=random.choice((1, 3, 8, 15)),
            ignore_eos=True,
            stop_token_ids=(random.randrange(VOCAB_SIZE),) if random.random() < 0.3 else (),
            output_kind=random.choice(kinds),
            stream_interval=random.choice((1, 1, 2, 3)),
            logprobs=random.choice((None, 0, 1)),
            prompt_logprobs=random.choice((None, None, 1)),
            truncate_prompt_tokens=truncate,
            bad_words=("a", " b") if random.random() < 0.2 else (),
            seed=random.randrange(1000),
        )
        length = random.randint(1, longest + (5 if truncate else -15))
        alike = random.random() < 0.5
        return cls(
            name,
            [0 if alike else random.randrange(VOCAB_SIZE) for _ in range(length)],
            params,
            random.randrange(3) if limits.policy == "priority" else 0,
            random.choice((None, None, "salt")),
            random.choice((None, 3.0)),
        )

    def request(self) -> Request:
        """What the scheduler must be given."""
        limit = self.params.truncate_prompt_tokens
        if limit == -1:
            limit = MAX_MODEL_LEN - 1
        kept = self.prompt if limit is None else self.prompt[max(0, len(self.prompt) - limit) :]
        words = [form for word in self.params.bad_words for form in (word, " " + word.lstrip())]
        return Request(
            request_id=self.name,
            prompt_token_ids=tuple(kept),
            sampling_params=self.params,
            arrival_s=7.0 if self.arrival_s is None else self.arrival_s,
            priority=self.priority,
            cache_salt=self.salt,
            bad_words_token_ids=tuple(dict.fromkeys(tuple(TOKENIZER.encode(w)) for w in words)),
        )


class _Run:
    """An engine, its clients, and what is wrong with what they hear."""

    def __init__(self, engine: LLMEngine) -> None:
        self.clients: dict[str, _Client] = {}
        self.found: list[Violation] = []
        self._engine = engine
        engine.on_step = self._note

    def ask(self, asked: _Asked) -> None:
        request = asked.request()
        samples = [_Sample() for _ in range(request.num_samples)]
        self.clients[asked.name] = _Client(request, samples)
        self._engine.add_request(
            asked.name,
            asked.prompt,
            asked.params,
            arrival_s=asked.arrival_s,
            priority=asked.priority,
            cache_salt=asked.salt,
        )

    def finish(self, random: Random) -> None:
        for _ in range(2000):
            if not self._engine.has_unfinished_requests():
                return
            self._abort(random)
            outputs = {output.request_id: output for output in self._engine.step()}
            for name, client in self.clients.items():
                self._judge_interval(client, outputs.get(name))
            for name, output in outputs.items():
                self._judge(self.clients[name], output)
        raise RuntimeError("no end after 2000 steps")

    def _abort(self, random: Random) -> None:
        """Now and then several clients hang up at once, some of whom have heard all already."""
        if random.random() > 0.05:
            return
        names = [name for name in self.clients if random.random() < 0.6]
        self._engine.abort_request([*names, "nobody"])
        for name in names:
            # Who hangs up while the first step is in flight hears of nothing cached.
            self.clients[name].has_started = True
            for sample in self.clients[name].samples:
                sample.end = sample.end or "abort"

    def _note(self, step: CompletedStep) -> None:
        """What the step drew, before anybody hears of it."""
        for new in step.plan.introduced:
            client = self.clients[new.request_id]
            if not client.has_started:
                client.has_started, client.num_cached_tokens = True, new.num_cached_tokens
        for name, sample in self._samples():
            if name in step.result.sampled and not sample.end:
                sample.drawn.append(step.result.sampled[name])
        ends = {one.seq_id: one.reason for one in step.update.finished}
        for name, sample in self._samples():
            sample.end = sample.end or ends.get(name, "")

    def _samples(self) -> Iterator[tuple[str, _Sample]]:
        for name, client in self.clients.items():
            for index, sample in enumerate(client.samples):
                yield sequence_id(name, index), sample

    def _judge_interval(self, client: _Client, output: RequestOutput | None) -> None:
        """A step's piece is there if, and only if, it is due."""
        params, samples = client.request.sampling_params, client.samples
        news = any(one.end and not one.end_heard for one in samples)
        if client.is_over or all(one.end for one in samples):
            is_due = not client.is_over
        elif params.output_kind == "final_only" or client.is_ranked:
            is_due = False
        else:
            waiting = [(len(one.drawn) - len(one.heard), bool(one.heard)) for one in samples]
            is_due = news or any(
                count >= (params.stream_interval if began else 1) for count, began in waiting
            )
        if is_due != (output is not None):
            message = "nothing is told that is due" if is_due else "a piece is told too early"
            self._wrong(INTERVALS, message, client, samples=samples)

    def _judge(self, client: _Client, output: RequestOutput) -> None:
        params = client.request.sampling_params
        if output.num_cached_tokens != client.num_cached_tokens:
            self._wrong(REPORTED, "other tokens are said to be cached", client, got=output)
        self._judge_prompt(client, output)
        samples = client.samples
        if client.is_ranked:
            likeliest = sorted(samples, key=lambda one: -_sum_of(client, one))
            samples = likeliest[: params.n]
        for completion in output.outputs:
            self._judge_sample(client, samples[completion.index], completion)
        client.is_over |= output.finished
        told = [one.index for one in output.outputs]
        missing = [
            index
            for index, one in enumerate(samples)
            if index not in told and (len(one.drawn) > len(one.heard) or not one.end_heard)
        ]
        if told != sorted(told) or (output.finished and missing):
            self._wrong(REPORTED, "samples are missing or out of order", client, told=told)

    def _judge_sample(self, client: _Client, sample: _Sample, told: CompletionOutput) -> None:
        params, first = client.request.sampling_params, client.request.num_prompt_tokens
        is_delta = params.output_kind == "delta"
        begin = len(sample.heard) if is_delta else 0
        if list(told.token_ids) != sample.drawn[begin:]:
            self._wrong(INTERVALS, "not all that was drawn is told", client, got=told, due=sample)
        if (told.finish_reason or "") != sample.end:
            self._wrong(INTERVALS, "an end is not told, or another", client, got=told, due=sample)
        sample.heard, sample.end_heard = list(sample.drawn), bool(sample.end)
        due = [report_of(first + at, token) for at, token in enumerate(sample.drawn)]
        if params.num_logprobs is None:
            if told.logprobs is not None or told.cumulative_logprob is not None:
                self._wrong(REPORTED, "scores that nobody asked for", client, got=told)
        elif list(told.logprobs or ()) != due[begin:]:
            self._wrong(REPORTED, "scores are not their tokens'", client, got=told.logprobs)
        elif told.cumulative_logprob != _sum_of(client, sample):
            self._wrong(REPORTED, "the sum is not the scores'", client, got=told)

    def _judge_prompt(self, client: _Client, output: RequestOutput) -> None:
        """Once for a client who hears differences, in each piece for others."""
        params, known = client.request.sampling_params, client.request.prompt_token_ids
        due: list[TokenLogprobs | None] | None = None
        got = None if output.prompt_logprobs is None else list(output.prompt_logprobs)
        if params.prompt_logprobs is not None and not (
            params.output_kind == "delta" and client.prompt_heard
        ):
            due = [None, *(report_of(at, known[at]) for at in range(1, len(known)))]
            if got is not None and any(one.end == "abort" for one in client.samples):
                # Its prompt may not have been computed to its end.
                due = [None if one is None else due[at] for at, one in enumerate(got)]
        client.prompt_heard += 1
        if got != due:
            self._wrong(REPORTED, "the prompt's scores are others", client, got=got, due=due)

    def _wrong(self, property_id: str, message: str, client: _Client, **facts: object) -> None:
        self.found.append(violation(property_id, -1, message, request=client.request, **facts))


def _sum_of(client: _Client, sample: _Sample) -> float:
    first = client.request.num_prompt_tokens
    return _total(score_of(first + at, token) for at, token in enumerate(sample.drawn))


def _total(scores: Iterator[float] | Sequence[float]) -> float:
    return sum(scores, 0.0)
