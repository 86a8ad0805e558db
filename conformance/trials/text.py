"""Text as clients see it: an engine of integers with a tiny tokenizer, against the whole text.

Each request's tokens are known in advance (conformance/alone.py). What it must show follows from
them by definition: decode everything, find the first end. The engine in between streams, holds
back, preempts, aborts.
"""

from dataclasses import dataclass, field
from random import Random

import msgspec

from pagetwin.conformance.alone import tokens_alone
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.tiny_tokenizer import TinyTokenizer
from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

PIECES = (b"a", b"b", b" a", b"ab", "é".encode()[:1], "é".encode()[1:], b"\xe4\xb8", b"<e>", b"<s>")
"""The last two are special; the first of them is EOS. Characters are split over tokens."""
EOS = 7
VOCAB_SIZE = len(PIECES)
STOPS = ("ab", "aab", "ba", "b a", "é", "aé", "bb", "abab", " a", "a a")
MAX_MODEL_LEN = 40


@dataclass
class _Expected:
    """What one sample must be."""

    token_ids: list[int]
    text: str
    reason: str
    stop_reason: int | str | None = None


@dataclass
class _Seen:
    """What a client has collected of one sample."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    ends: list[tuple[str, int | str | None]] = field(default_factory=list)
    taken_back: bool = False


FALLBACK_PIECES = (*PIECES[:6], b"c", *PIECES[7:])
"""For a tokenizer that falls back to bytes: those that are no characters are single."""


def judge_text(seed: int, index: int) -> list[Violation]:
    """A few requests of all kinds, twice over one engine, under memory pressure."""
    random = Random(f"text {seed} {index}")
    tokenizer = TinyTokenizer(
        PIECES, first_special=EOS, eos_token_ids=(EOS,), spaced=random.random() < 0.5
    )
    return _judge_engine(random, tokenizer)


def judge_fallback_text(seed: int, index: int) -> list[Violation]:
    """Likewise with a tokenizer whose runs of bytes may become characters until they end."""
    random = Random(f"fallback text {seed} {index}")
    tokenizer = TinyTokenizer(
        FALLBACK_PIECES,
        first_special=EOS,
        eos_token_ids=(EOS,),
        spaced=random.random() < 0.5,
        fallback=True,
    )
    return _judge_engine(random, tokenizer)


def _judge_engine(random: Random, tokenizer: TinyTokenizer) -> list[Violation]:
    cache = CacheConfig(num_blocks=random.choice((12, 16, 40)), block_size=4)
    limits = SchedulerConfig(
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=8,
        max_num_batched_tokens=random.choice((8, 16, 64)),
        async_scheduling=random.random() < 0.3,
    )
    engine = LLMEngine(
        EngineConfig(cache=cache, scheduler=limits),
        FingerprintExecutor(cache, vocab_size=VOCAB_SIZE),
        vocab_size=VOCAB_SIZE,
        tokenizer=tokenizer,
        eos_token_ids=(EOS,),
        clock=lambda: 0.0,
    )
    found: list[Violation] = []
    try:
        for _ in range(2):  # the second time under the same names
            requests = {f"r{i}": _request(random, f"r{i}") for i in range(random.randint(1, 4))}
            aborts = {name: random.randint(0, 12) for name in requests if random.random() < 0.15}
            seen = _run(engine, requests, aborts)
            for name, request in requests.items():
                found += _judge(request, seen[name], cache, tokenizer, aborted=name in aborts)
            if engine.get_num_unfinished_requests():
                found.append(violation("text.finish-reason", -1, "requests are left over"))
    except Exception as error:  # whatever it is: the requests are valid ones
        message = f"the engine raised {type(error).__name__}: {error}"
        found.append(violation("life.no-crash", -1, message))
    return found


def _request(random: Random, name: str) -> Request:
    stops = random.sample(STOPS, random.choice((0, 1, 1, 2, 3)))
    max_tokens = random.choice((1, 3, 8, 15, 25))
    params = SamplingParams(
        n=random.choice((1, 1, 2)),
        max_tokens=max_tokens,
        min_tokens=min(max_tokens, random.choice((0, 0, 2, 5))),
        stop=tuple(stops),
        stop_token_ids=(8,) if random.random() < 0.3 else (),
        include_stop_str_in_output=random.random() < 0.3,
        ignore_eos=random.random() < 0.5,
        skip_special_tokens=random.random() < 0.7,
        output_kind=random.choice(("cumulative", "delta", "delta", "final_only")),
        stream_interval=random.choice((1, 1, 3)),
        seed=random.randrange(1000),
    )
    prompt = tuple(random.randrange(VOCAB_SIZE) for _ in range(random.randint(1, 12)))
    return Request(
        request_id=name, prompt_token_ids=prompt, sampling_params=params, eos_token_ids=(EOS,)
    )


def _run(
    engine: LLMEngine, requests: dict[str, Request], aborts: dict[str, int]
) -> dict[str, list[_Seen]]:
    """Drives the engine to the end and collects what the clients are handed."""
    seen = {
        name: [_Seen() for _ in range(request.num_samples)] for name, request in requests.items()
    }
    for name, request in requests.items():
        engine.add_request(name, request.prompt_token_ids, request.sampling_params)
    step = 0
    while engine.has_unfinished_requests():
        engine.abort_request([name for name, when in aborts.items() if when == step])
        for output in engine.step():
            _collect(output, requests[output.request_id], seen[output.request_id])
        step += 1
        if step > 2000:
            raise RuntimeError("no end after 2000 steps")
    return seen


def _collect(output: RequestOutput, request: Request, seen: list[_Seen]) -> None:
    delta = request.sampling_params.output_kind == "delta"
    for one in output.outputs:
        sample = seen[one.index]
        sample.taken_back |= not delta and not one.text.startswith(sample.text)
        sample.text = sample.text + one.text if delta else one.text
        ids = list(one.token_ids)
        sample.token_ids = sample.token_ids + ids if delta else ids
        end = (one.finish_reason, one.stop_reason)
        if one.finish_reason is not None and (delta or end not in sample.ends):
            sample.ends.append((one.finish_reason, one.stop_reason))


def _judge(
    request: Request,
    seen: list[_Seen],
    cache: CacheConfig,
    tokenizer: TinyTokenizer,
    *,
    aborted: bool,
) -> list[Violation]:
    found = []
    ample = msgspec.structs.replace(cache, num_blocks=40)
    params = request.sampling_params
    for index, sample in enumerate(seen):
        limit = min(params.max_tokens or 0, MAX_MODEL_LEN - request.num_prompt_tokens)
        tokens = tokens_alone(request, index, limit, ample, VOCAB_SIZE)
        due = _expected(tokens, params, tokenizer)
        name = f"{request.request_id}/{index}"
        reasons = [reason for reason, _ in sample.ends]
        if aborted and reasons == ["abort"]:
            # It may have come as far as anything before its end, and shown no more.
            is_part = due.text.startswith(sample.text) or tokenizer.decode(
                sample.token_ids, skip_special_tokens=params.skip_special_tokens
            ).startswith(sample.text)
            if sample.token_ids != tokens[: len(sample.token_ids)] or not is_part:
                found.append(_wrong("text.decoded", name, "an aborted sample shows", sample, due))
            continue
        if sample.taken_back or sample.text != due.text:
            found.append(_wrong("text.decoded", name, "a client is shown", sample, due))
        if sample.token_ids != due.token_ids or sample.ends != [(due.reason, due.stop_reason)]:
            found.append(_wrong("text.finish-reason", name, "a sample ends as", sample, due))
    return found


def _wrong(property_id: str, name: str, what: str, seen: _Seen, due: _Expected) -> Violation:
    return violation(
        property_id, -1, f"{what} something else than it must", sample=name, seen=seen, due=due
    )


def _expected(tokens: list[int], params: SamplingParams, tokenizer: TinyTokenizer) -> _Expected:
    """By definition: after each token, look at all of the text that can no longer change."""

    def decode(count: int) -> str:
        return tokenizer.decode(tokens[:count], skip_special_tokens=params.skip_special_tokens)

    def stable(count: int) -> str:
        """The text without an unfinished character at its end, and, if what the newest token adds
        may still be changed by the next one (it adds nothing), without that."""
        return _without_unfinished(tokens[:count], params, tokenizer)

    for count, token in enumerate(tokens, start=1):
        may_stop = count > params.min_tokens
        if may_stop and token == EOS and not params.ignore_eos:
            return _Expected(tokens[:count], decode(count - 1), "stop")
        if may_stop and token in params.stop_token_ids:
            shown = count if params.include_stop_str_in_output else count - 1
            return _Expected(tokens[:count], decode(shown), "stop", token)
        before, text = len(stable(count - 1)), stable(count)
        matches = sorted(
            (begin + len(stop), begin, stop)
            for stop in params.stop
            for begin in range(len(text))
            if text.startswith(stop, begin) and begin + len(stop) > before
        )
        if may_stop and matches:
            end, begin, stop = matches[0]
            cut = end if params.include_stop_str_in_output else begin
            return _Expected(tokens[:count], text[:cut], "stop", stop)
    return _Expected(tokens, decode(len(tokens)), "length")


def _without_unfinished(tokens: list[int], params: SamplingParams, tokenizer: TinyTokenizer) -> str:
    shown = [
        token
        for token in tokens
        if not (params.skip_special_tokens and tokenizer.is_special(token))
    ]
    if any(map(tokenizer.may_change, range(VOCAB_SIZE))):
        while shown and tokenizer.may_change(shown[-1]):
            shown.pop()
        return tokenizer.decode(shown, skip_special_tokens=params.skip_special_tokens)
    data = b"".join(PIECES[token] for token in shown)
    whole = tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens)
    for missing in range(1, 4):
        tail = data[-missing:]
        lengths = {0xC3: 2, 0xE4: 3}
        if tail and lengths.get(tail[0], 0) > missing and _continues(tail[1:]):
            return whole.removesuffix("\ufffd")
    return whole


def _continues(tail: bytes) -> bool:
    return all(0x80 <= byte < 0xC0 for byte in tail)
