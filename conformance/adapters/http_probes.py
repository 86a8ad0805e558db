"""Which parameters a server honours: each is sent with a value that must change the answer."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from pagetwin.conformance.adapters.http_stream import token_id
from pagetwin.conformance.adapters.protocol import AdapterError
from pagetwin.conformance.capability import YES, Capabilities, Flag, Support, conditional, no

PROMPT = (5, 6, 7, 8, 9, 10, 11, 12)
"""Token ids that every vocabulary has."""
CACHED_PROMPT_LENGTH = 600
"""Long enough for a full block of any engine."""
NUM_SEEDS = 4

_CLIENT_SIDE = {
    Flag.PENALTIES: no("the adapter does not send biases and masks"),
    Flag.PROMPT_LOGPROBS: no("the adapter does not ask for them"),
    Flag.SCORE: no("the adapter does not ask for prompt log-probabilities"),
    Flag.RESET_CACHE: no("the protocol has no call for it"),
    Flag.FORCE_PREEMPT: no("the protocol has no call for it"),
    Flag.STEP_TRACE: no("a server's steps cannot be seen over HTTP"),
    Flag.BLOCK_TABLES: no("a server's block tables cannot be seen over HTTP"),
    Flag.COUNTERS: no("a server's books cannot be seen over HTTP"),
    Flag.POLICY: no("a server's policy cannot be seen over HTTP"),
}

Ask = Callable[[Mapping[str, Any]], tuple[int, Any]]
"""Posts the fields as a completion; (status, JSON or None)."""


def probe(client: httpx2.Client, url: str, model: str) -> Capabilities:
    """Asks a dozen short completions. Raises AdapterError if the plainest of them fails."""

    def ask(fields: Mapping[str, Any]) -> tuple[int, Any]:
        plain = {"model": model, "prompt": list(PROMPT), "max_tokens": 4, "temperature": 0}
        return post(client, url, plain | dict(fields))

    status, plain = ask({"prompt": "t5 t6 t7 t8"})
    if status != 200 or not _choices(plain):
        raise AdapterError(
            f"{url}: a plain completion was answered with {status}: {json.dumps(plain)[:300]}; is "
            f"this an OpenAI-compatible server, and does it serve the model {model!r}?"
        )
    support = dict(_CLIENT_SIDE)
    support[Flag.TEXT] = YES
    support[Flag.CANCEL] = YES
    for one in (_tokens, _stops, _refusals, _draws, _scores, _cache):
        support |= one(ask)
    return Capabilities(support)


def block_size(client: httpx2.Client, url: str, model: str) -> int | None:
    """Tokens of the shortest prefix of a known prompt that the server says it found in its cache;
    None if it finds none. To be asked where it reports cached tokens, after `probe`."""
    length = 2
    while length <= CACHED_PROMPT_LENGTH:
        # One token more than a block: an engine computes at least the last token itself.
        body = {"model": model, "prompt": _long_prompt(length), "max_tokens": 1, "temperature": 0}
        count = _cached_tokens(post(client, url, body)[1])
        if count:
            return count
        length = 2 * length - 1
    return None


def post(client: httpx2.Client, url: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    """(status, JSON). Raises AdapterError if the server is not there, or hangs."""
    try:
        answer = client.post(url, json=dict(body))
    except httpx2.TimeoutException:
        raise AdapterError(
            f"{url}: no answer within {client.timeout.read:g} s; the server hangs, or needs a "
            "larger timeout_s"
        ) from None
    except httpx2.HTTPError as error:
        raise AdapterError(f"{url}: cannot be reached ({error}); is the server up?") from None
    try:
        return answer.status_code, answer.json()
    except ValueError:
        return answer.status_code, None


def _choices(answer: Any) -> list[dict[str, Any]]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []


def _first(answer: Any) -> dict[str, Any]:
    return next(iter(_choices(answer)), {})


def _yes_if(ok: bool, reason: str) -> Support:
    return YES if ok else no(reason)


def _usage(answer: Any) -> dict[str, Any]:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return usage if isinstance(usage, dict) else {}


def _tokens(ask: Ask) -> dict[Flag, Support]:
    status, answer = ask({"return_token_ids": True})
    counted = _usage(answer).get("prompt_tokens") == len(PROMPT)
    ids = _first(answer).get("token_ids")
    good = isinstance(ids, list) and len(ids) == _usage(answer).get("completion_tokens")
    return {
        Flag.TOKEN_PROMPT: _yes_if(
            status == 200 and counted,
            f"a prompt of {len(PROMPT)} token ids was answered with {status} and "
            f"prompt_tokens={_usage(answer).get('prompt_tokens')}",
        ),
        Flag.TOKEN_IDS: _yes_if(good, "return_token_ids brought no token ids"),
    }


def _stops(ask: Ask) -> dict[Flag, Support]:
    _, plain = ask({"return_token_ids": True, "max_tokens": 8})
    ids, text = _first(plain).get("token_ids") or [], str(_first(plain).get("text") or "")
    support = {
        Flag.STOP_TOKENS: no("there are no token ids to stop at"),
        Flag.STOP_STRINGS: no("the probe's completion had no text to stop at"),
    }
    if ids:
        _, cut = ask({"max_tokens": 8, "stop_token_ids": ids[:1], "return_token_ids": True})
        ended = _first(cut).get("finish_reason") == "stop"
        support[Flag.STOP_TOKENS] = _yes_if(
            ended and len(_first(cut).get("token_ids") or []) <= 1,
            f"stop_token_ids=[{ids[0]}] did not end a completion that begins with that token",
        )
    if text.strip():
        mark = text.strip()[0]
        _, cut = ask({"max_tokens": 8, "stop": [mark]})
        support[Flag.STOP_STRINGS] = _yes_if(
            mark not in str(_first(cut).get("text")), f"stop=[{mark!r}] did not cut {text!r}"
        )
        _, cut = ask({"max_tokens": 8, "stop": [mark], "include_stop_str_in_output": True})
        support[Flag.SHOWN_STOP_STRINGS] = _yes_if(
            str(_first(cut).get("text")).endswith(mark),
            "include_stop_str_in_output did not leave the stop string in the text",
        )
    return support


def _refusals(ask: Ask) -> dict[Flag, Support]:
    """Parameters whose effect a short completion does not show: a server that knows one refuses
    a value that cannot be."""
    impossible: dict[Flag, dict[str, Any]] = {
        Flag.IGNORE_EOS: {"ignore_eos": "neither"},
        Flag.CACHE_SALT: {"cache_salt": 17},
        Flag.PRIORITY: {"priority": "high"},
    }
    support: dict[Flag, Support] = {}
    for flag, fields in impossible.items():
        status, _ = ask(fields)
        [(name, value)] = fields.items()
        support[flag] = _yes_if(
            400 <= status < 500, f"{name}={value!r} was answered with {status}: it is ignored"
        )
    if support[Flag.PRIORITY] == YES:
        status, _ = ask({"priority": 1})
        support[Flag.PRIORITY] = _yes_if(
            status == 200, f"priority=1 was answered with {status}; the server runs fcfs"
        )
    return support


def _draws(ask: Ask) -> dict[Flag, Support]:
    def draw(seed: int) -> str:
        return str(_first(ask({"temperature": 2.0, "seed": seed, "max_tokens": 12})[1]).get("text"))

    seeds = range(1, NUM_SEEDS + 1)
    once, again = [draw(seed) for seed in seeds], [draw(seed) for seed in seeds]
    _, two = ask({"n": 2, "temperature": 1.0})
    support = {
        Flag.TEMPERATURE: YES,
        Flag.SEED: _yes_if(once == again, "equal seeds gave different outputs"),
        Flag.SAMPLES: _yes_if(len(_choices(two)) == 2, f"n=2 brought {len(_choices(two))} choices"),
    }
    if len(set(once + again)) == 1:
        same = conditional("models that are not so sure: no draw of the probe's differed")
        support |= {Flag.TEMPERATURE: same, Flag.SEED: same}
    return support


def _scores(ask: Ask) -> dict[Flag, Support]:
    _, answer = ask({"logprobs": 2, "return_tokens_as_token_ids": True})
    scores = _first(answer).get("logprobs")
    scores = scores if isinstance(scores, dict) else {}
    chosen, top = scores.get("token_logprobs") or [], scores.get("top_logprobs") or []
    named = bool(top) and all(token_id(text) is not None for text in top[0] or ())
    return {
        Flag.CHOSEN_LOGPROB: _yes_if(
            bool(chosen) and all(isinstance(x, int | float) for x in chosen),
            "logprobs=2 brought none",
        ),
        Flag.TOPK_LOGPROB: _yes_if(
            named and len(top[0]) >= 2,
            "logprobs=2 brought no two tokens, or named them by text and not by id",
        ),
    }


def _cache(ask: Ask) -> dict[Flag, Support]:
    asked = {"prompt": _long_prompt(CACHED_PROMPT_LENGTH), "max_tokens": 1}
    counts = [_cached_tokens(ask(asked)[1]) for _ in range(2)]
    told = isinstance(counts[1], int)
    silent = "the server does not report cached_tokens"
    return {
        Flag.CACHED_TOKEN_COUNT: _yes_if(told, silent),
        Flag.PREFIX_CACHE: (
            _yes_if(bool(counts[1]), "a prompt sent twice found nothing cached")
            if told
            else conditional(f"{silent}, so whether there is a cache shows only in its effects")
        ),
    }


def _long_prompt(length: int) -> list[int]:
    return [PROMPT[i % len(PROMPT)] for i in range(length)]


def _cached_tokens(answer: Any) -> int | None:
    details = _usage(answer).get("prompt_tokens_details")
    count = details.get("cached_tokens") if isinstance(details, dict) else None
    return count if isinstance(count, int) else None
