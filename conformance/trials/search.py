"""Beam searches as clients see them, against the search that the definition gives for each alone.

The engine has an executor of integers whose candidates' scores are a function of a beam's tokens,
coarse ones, so that hypotheses tie. It is short of memory, has neighbours, and swaps or computes
again what it takes from beams. The search alone asks the same function of one beam after another.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

import numpy as np

from pagetwin.conformance.alone import plan_alone
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.tiny_tokenizer import TinyTokenizer
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import TokenLogprobs

ID = "search.definition"
VOCAB_SIZE = 12
EOS = 3
MAX_MODEL_LEN = 20
MAX_WIDTH = 4
TOKENIZER = TinyTokenizer([bytes((97 + i,)) for i in range(VOCAB_SIZE)], eos_token_ids=(EOS,))

Tokens = tuple[int, ...]


class Scored(NamedTuple):
    """A beam or a hypothesis; `reason` is "" while it goes on."""

    token_ids: Tokens
    cumulative_logprob: float
    score: float
    reason: str = ""


class CoarseExecutor(FingerprintExecutor):
    """Candidates whose log-probabilities are halves from 0 to -3: many are equal."""

    def _candidates(self, fingerprint: int) -> TokenLogprobs:
        fine = super()._candidates(fingerprint)
        scored = sorted(
            (-(-int(score * 1024) % 7) / -2, token)
            for score, token in zip(fine.logprobs, fine.token_ids, strict=True)
        )
        return TokenLogprobs(
            token_ids=tuple(token for _, token in scored),
            logprobs=tuple(-cost for cost, _ in scored),
            ranks=fine.ranks,
        )


def judge_search(seed: int, index: int) -> list[Violation]:
    """A few requests at once, most of them beam searches."""
    random = Random(f"search {seed} {index}")
    block_size = random.choice((2, 3, 4))
    # The widest search alone fits, two that grow long do not.
    max_width = random.choice((2, 3, MAX_WIDTH))
    num_blocks = 1 + max_width * -(-MAX_MODEL_LEN // block_size)
    cache = CacheConfig(
        num_blocks=num_blocks, block_size=block_size, num_host_blocks=random.choice((0, 20))
    )
    limits = SchedulerConfig(
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=random.choice((4, 8, 12)),
        max_num_batched_tokens=random.choice((12, 16, 64)),
        preemption_mode=random.choice(("recompute", "swap")),
        async_scheduling=random.random() < 0.5,
    )
    engine = LLMEngine(
        EngineConfig(cache=cache, scheduler=limits),
        CoarseExecutor(cache, vocab_size=VOCAB_SIZE),
        vocab_size=VOCAB_SIZE,
        tokenizer=TOKENIZER,
        eos_token_ids=(EOS,),
        clock=lambda: 0.0,
    )
    requests = [_request(random, f"r{number}", max_width) for number in range(random.randint(2, 7))]
    try:
        seen = _run(engine, requests)
    except Exception as error:  # whatever it is: the requests are valid ones
        message = f"the engine raised {type(error).__name__}: {error}"
        return [violation("life.no-crash", -1, message)]
    return [
        found
        for request in requests
        if request.beam_search is not None
        for found in _judge(request, seen[request.request_id], cache)
    ]


def _request(random: Random, name: str, max_width: int) -> Request:
    prompt = tuple(random.randrange(VOCAB_SIZE) for _ in range(random.randint(1, 8)))
    width = random.randint(1, max_width)
    # Now and then so many that the best continuations of every beam may all be ends.
    most = VOCAB_SIZE // width - 2
    num_stops = random.choice((0, 0, 0, min(1, most), most))
    is_search = random.random() < 0.8
    params = SamplingParams(
        n=random.randint(1, width) if is_search else 1,
        max_tokens=random.choice((1, 4, 7, MAX_MODEL_LEN, None, None)),
        stop_token_ids=tuple(random.sample(range(VOCAB_SIZE), num_stops)),
        ignore_eos=random.random() < 0.6,
        include_stop_str_in_output=random.random() < 0.3,
        seed=0,
    )
    search = BeamSearchParams(
        beam_width=width,
        length_penalty=random.choice((0.0, 1.0, 1.0, 2.0, -1.0)),
        early_stopping=random.choice((True, False, "never")),
    )
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        sampling_params=params,
        beam_search=search if is_search else None,
        eos_token_ids=(EOS,),
    )


def _run(engine: LLMEngine, requests: list[Request]) -> dict[str, RequestOutput]:
    """Each request's last output."""
    seen: dict[str, RequestOutput] = {}
    for request in requests:
        engine.submit(request)
    for _ in range(2000):
        if not engine.has_unfinished_requests():
            return seen
        seen |= {output.request_id: output for output in engine.step()}
    raise RuntimeError("no end after 2000 steps")


def _judge(request: Request, output: RequestOutput, cache: CacheConfig) -> Iterator[Violation]:
    n = request.sampling_params.n
    due = search_alone(request, lambda tokens: _candidates(request, tokens, cache))[:n]
    got = [
        Scored(
            one.token_ids, one.cumulative_logprob or 0.0, one.score or 0.0, one.finish_reason or ""
        )
        for one in output.outputs
    ]
    if got != due:
        yield violation(ID, -1, "a search ends as another", request=request, got=got, due=due)
        return
    for one, completion in zip(due, output.outputs, strict=True):
        text, stop_reason = _shown(request, one)
        if (completion.text, completion.stop_reason) != (text, stop_reason):
            yield violation(
                ID,
                -1,
                "a hypothesis is shown as another",
                request=request,
                got=(completion.text, completion.stop_reason),
                due=(text, stop_reason),
            )


def _shown(request: Request, one: Scored) -> tuple[str, int | None]:
    """A hypothesis' text and stop reason: what ended it gives no text, unless it is a stop token
    that is asked for."""
    params = request.sampling_params
    if one.reason != "stop":
        return TOKENIZER.decode(one.token_ids), None
    last = one.token_ids[-1]
    is_eos = last == EOS and not params.ignore_eos
    keeps = params.include_stop_str_in_output and not is_eos
    shown = one.token_ids if keeps else one.token_ids[:-1]
    return TOKENIZER.decode(shown), None if is_eos else last


def _candidates(request: Request, tokens: Tokens, cache: CacheConfig) -> list[tuple[int, float]]:
    """Every token and its log-probability behind these, of the request alone."""
    plan, ample = plan_alone(request, tokens, cache)
    executor = CoarseExecutor(ample, vocab_size=VOCAB_SIZE)
    [report] = executor.execute(plan).logprobs.values()
    return list(zip(report.token_ids, report.logprobs, strict=True))


def search_alone(
    request: Request, candidates: Callable[[Tokens], list[tuple[int, float]]]
) -> list[Scored]:
    """The search by its definition (transformers' beam search without sampling): the best
    hypotheses, best first. Scores are float32; of equal ones the smaller beam counts first, then
    the smaller token. Every token is looked at, none left out for being far behind.
    """
    params, search = request.sampling_params, request.beam_search
    assert search is not None
    width = search.beam_width
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(request.eos_token_ids))
    room = MAX_MODEL_LEN - request.num_prompt_tokens
    limit = room if params.max_tokens is None else min(room, params.max_tokens)

    def normalised(total: float, length: int) -> float:
        return float(np.float32(total) / np.float32(float(length) ** search.length_penalty))

    live: list[tuple[Tokens, float]] = [((), 0.0)]
    done: list[Scored] = []
    for length in range(1, limit + 1):
        following = [
            (-float(np.float32(total) + np.float32(logprob)), beam, token)
            for beam, (tokens, total) in enumerate(live)
            for token, logprob in candidates(tokens)
        ]
        following.sort()
        going: list[tuple[Tokens, float]] = []
        for place, (cost, beam, token) in enumerate(following):
            tokens = (*live[beam][0], token)
            if token not in ends and length < limit:
                going.append((tokens, -cost))
            elif place < width:
                reason = "stop" if token in ends else "length"
                done.append(Scored(tokens, -cost, normalised(-cost, length), reason))
        done = sorted(done, key=lambda one: -one.score)[:width]
        live = going[:width]
        if not live:
            break
        if len(done) == width:
            judged_at = length
            if search.early_stopping == "never" and search.length_penalty > 0:
                judged_at = limit
            is_best = normalised(live[0][1], judged_at) <= done[-1].score
            if search.early_stopping is True or is_best:
                break
    return done
