"""One completion over HTTP: the body that asks for it, and the events of its stream."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2

from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.engine.request import Request

SSE_PREFIX = "data:"
SSE_END = "[DONE]"
TOKEN_ID_PREFIX = "token_id:"
"""How servers that were asked for it write a token's id where its text would stand."""


SENT = (
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "include_stop_str_in_output",
)
"""Sampling parameters that are sent where they are not at their defaults."""


class BadAnswer(Exception):
    """The server answered something that is not the protocol."""


class Rejected(Exception):
    """The server refused the request: a 4xx, with what it says."""


def body_of(request: Request, model: str, can: Capabilities) -> dict[str, Any]:
    """The JSON of POST /v1/completions; only parameters that the server honours are sent."""
    params = request.sampling_params
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": params.max_tokens or 16,
        "temperature": params.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    plain = type(params)()
    changed = {name: getattr(params, name) for name in SENT}
    body |= {name: value for name, value in changed.items() if value != getattr(plain, name)}
    if can.has(Flag.TOKEN_IDS):
        body["return_token_ids"] = True
    if can.has(Flag.IGNORE_EOS):
        body["ignore_eos"] = params.ignore_eos
    if can.has(Flag.CHOSEN_LOGPROB):
        body |= {"logprobs": params.logprobs or 0, "return_tokens_as_token_ids": True}
    optional = {
        "seed": params.seed,
        "n": params.n if params.n > 1 else None,
        "stop": list(params.stop) or None,
        "stop_token_ids": list(params.stop_token_ids) or None,
        "cache_salt": request.cache_salt,
        "priority": request.priority or None,
    }
    return body | {name: value for name, value in optional.items() if value is not None}


async def events(
    client: httpx2.AsyncClient, url: str, body: dict[str, Any]
) -> AsyncGenerator[dict[str, Any]]:
    """Yields the JSON objects of a completion's stream.

    Raises Rejected on a 4xx, BadAnswer on anything that is not the protocol, and httpx2's own
    errors where the connection fails.
    """
    async with client.stream("POST", url, json=body) as answer:
        if answer.status_code != 200:
            text = (await answer.aread()).decode(errors="replace")
            error = f"{answer.status_code}: {error_message(text)}"
            raise Rejected(error) if answer.status_code < 500 else BadAnswer(error)
        async for line in answer.aiter_lines():
            if not line.startswith(SSE_PREFIX):
                continue
            data = line.removeprefix(SSE_PREFIX).strip()
            if data == SSE_END:
                return
            yield _event(data)
    raise BadAnswer(f"the stream ended without {SSE_END}")


def error_message(text: str) -> str:
    """What an error body says, in whichever of the usual shapes; at most 300 characters."""
    try:
        body = json.loads(text)
        error = body.get("error", body)
        message = error.get("message") or error.get("detail") or text
    except (ValueError, AttributeError):
        message = text
    return str(message)[:300]


def token_id(text: object) -> int | None:
    """The id that `token_id:17` stands for; None for any other text."""
    if isinstance(text, str) and text.startswith(TOKEN_ID_PREFIX):
        number = text.removeprefix(TOKEN_ID_PREFIX)
        return int(number) if number.isdecimal() else None
    return None


def _event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise BadAnswer(f"the stream has a line that is not JSON: {data[:100]!r}") from None
    if not isinstance(event, dict):
        raise BadAnswer(f"the stream has a line that is no object: {data[:100]!r}")
    if "error" in event:
        raise BadAnswer(error_message(data))
    return event
