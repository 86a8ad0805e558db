"""An OpenAI-compatible server in a thread, whose model is the provenance checkpoint's rule.

A `Behaviour` says what it knows and how it misbehaves.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from typing import Any

MODEL = "provenance"
OFFSET = 5
CACHE_BLOCK = 16
KNOWN_TYPES: dict[str, type | tuple[type, ...]] = {
    "ignore_eos": bool,
    "cache_salt": str,
    "priority": int,
}


@dataclass
class Behaviour:
    """A good server, unless changed."""

    ignored: tuple[str, ...] = ()
    """Parameters that it takes and does nothing with."""
    hangs_from: int | None = None
    """Completions are answered until this one, which never is."""
    breaks_off_after: int | None = None
    """Events after which a stream's connection closes."""
    garbles: bool = False
    """Streams have a line that is not JSON."""
    refuses_length: int | None = None
    """Prompts of more tokens are answered with 400."""
    leaks: bool = False
    """Now and then a slot of the request before is read."""
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": MODEL}])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """What it was asked, in order."""
    released: threading.Event = field(default_factory=threading.Event)
    """Set when the server closes, so that hanging handlers end."""


class _Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": self.behaviour.models})

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        sent = json.loads(self.rfile.read(length))
        behaviour = self.behaviour
        behaviour.bodies.append(sent)
        if behaviour.hangs_from is not None and len(behaviour.bodies) > behaviour.hangs_from:
            behaviour.released.wait()
            return
        body = {name: value for name, value in sent.items() if name not in behaviour.ignored}
        for name, kind in KNOWN_TYPES.items():
            if name in body and not isinstance(body[name], kind):
                self._json(400, {"error": {"message": f"{name} must be {kind}"}})
                return
        prompt = _prompt_ids(body["prompt"])
        if behaviour.refuses_length is not None and len(prompt) > behaviour.refuses_length:
            self._json(400, {"error": {"message": f"{len(prompt)} tokens are too many"}})
            return
        events = list(_events(behaviour, body, prompt))
        if body.get("stream"):
            self._stream(events)
        else:
            self._json(200, _whole(events))

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for number, event in enumerate(events):
                if number == self.behaviour.breaks_off_after:
                    return
                if self.behaviour.garbles and number == 1:
                    self.wfile.write(b"data: {half\n\n")
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # The client hung up, as it may.


def _prompt_ids(prompt: str | list[int]) -> list[int]:
    return [int(word[1:]) for word in prompt.split()] if isinstance(prompt, str) else prompt


def _events(
    behaviour: Behaviour, body: dict[str, Any], prompt: list[int]
) -> Iterator[dict[str, Any]]:
    """One event a token and sample, then the usage."""
    samples = int(body.get("n", 1))
    total = 0
    for index in range(samples):
        text, output = list(prompt), list[int]()
        reason = "length"
        for _ in range(body.get("max_tokens", 16)):
            token = _next_token(behaviour, body, text, index)
            text.append(token)
            output.append(token)
            if token in body.get("stop_token_ids", ()):
                reason = "stop"
                break
        for number, token in enumerate(output):
            word = f" t{token}"
            mark = next((mark for mark in body.get("stop", ()) if mark in word), None)
            if mark is not None:
                shown = len(mark) if body.get("include_stop_str_in_output") else 0
                word, reason = word[: word.index(mark) + shown], "stop"
            last = number == len(output) - 1 or mark is not None
            yield {"choices": [_choice(body, index, token, word, reason if last else None)]}
            total += 1
            if mark is not None:
                break
    cached = _cached(behaviour, prompt)
    usage = {
        "prompt_tokens": len(prompt),
        "completion_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    yield {"choices": [], "usage": usage}


def _cached(behaviour: Behaviour, prompt: list[int]) -> int:
    """Whole blocks that the prompt, less its last token, shares with an earlier one."""
    shared = 0
    for body in behaviour.bodies[:-1]:
        pairs = zip(prompt[:-1], _prompt_ids(body["prompt"]), strict=False)
        shared = max(shared, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return shared // CACHE_BLOCK * CACHE_BLOCK


def _next_token(behaviour: Behaviour, body: dict[str, Any], text: list[int], sample: int) -> int:
    slot = len(text) - 1 - OFFSET
    if body.get("temperature", 1.0) > 0:
        return 20 + (int(body.get("seed", 0)) * 7 + len(text) * 3 + sample) % 50
    before = behaviour.bodies[-2] if len(behaviour.bodies) > 1 else body
    other = _prompt_ids(before["prompt"])
    if behaviour.leaks and slot % 7 == 0 and slot < len(other):
        return other[slot]
    return text[slot] if slot >= 0 else 3


def _choice(
    body: dict[str, Any], index: int, token: int, word: str, reason: str | None
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "text": word, "finish_reason": reason}
    if body.get("return_token_ids"):
        choice["token_ids"] = [token]
    if "logprobs" in body:
        named = body.get("return_tokens_as_token_ids")
        names = [f"token_id:{i}" if named else f" t{i}" for i in (token, token + 1)]
        top = dict(zip(names[: max(1, body["logprobs"])], (-0.25, -2.0), strict=False))
        choice["logprobs"] = {"token_logprobs": [-0.25], "top_logprobs": [top]}
    return choice


def _whole(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of a request that does not stream."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"index": part["index"], "text": ""})
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"]
            choice.setdefault("token_ids", []).extend(part.get("token_ids", ()))
            for name, values in part.get("logprobs", {}).items():
                choice.setdefault("logprobs", {}).setdefault(name, []).extend(values)
    for choice in choices.values():
        choice["token_ids"] = choice["token_ids"] or None
    return {"choices": list(choices.values()), "usage": events[-1]["usage"]}


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Runs the server; yields its API's address."""
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        behaviour.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
