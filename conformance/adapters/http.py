"""`http://host:port/v1?model=NAME`: any OpenAI-compatible server, as its clients see it."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from pagetwin.conformance.adapters.foreign import unsent_fields
from pagetwin.conformance.adapters.http_probes import block_size, probe
from pagetwin.conformance.adapters.http_stream import (
    SENT,
    BadAnswer,
    Rejected,
    body_of,
    events,
    token_id,
)
from pagetwin.conformance.adapters.options import read_options
from pagetwin.conformance.adapters.protocol import (
    AdapterError,
    EngineDied,
    EngineInfo,
    EngineTimeout,
    SessionConfig,
    SessionRefused,
)
from pagetwin.conformance.capability import YES, Capabilities, Flag, conditional, no
from pagetwin.conformance.observation import (
    AnyObservation,
    CachedTokens,
    Cancelled,
    Failed,
    Finished,
    Refused,
    Scored,
    Submitted,
    TextSeen,
    TokenSeen,
)
from pagetwin.conformance.provenance.recipe import read_recipe
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What may stand behind `http://host:port/v1?`."""

    model: str = ""
    """The served model's name; empty: the first that the server lists."""
    checkpoint: str = ""
    """The folder of the provenance checkpoint that the server runs, if it runs one."""
    timeout_s: float = 60.0
    """How long a probe may take, and how long a stream may stay silent."""


def make(target: str, options: Mapping[str, Any]) -> "HttpAdapter":
    """Asks the server what it serves and what it honours.

    Raises AdapterError if nobody answers, on unknown options, or if the folder named as checkpoint
    holds none.
    """
    chosen = read_options("http:", options, Options)
    if chosen.checkpoint:
        try:
            recipe = read_recipe(Path(chosen.checkpoint))
        except ConfigError as error:
            raise AdapterError(str(error)) from None
        if recipe is None:
            raise AdapterError(f"checkpoint={chosen.checkpoint}: not a provenance checkpoint")
    return HttpAdapter(target.rstrip("/"), chosen)


class HttpAdapter:
    """One server. Sessions share its cache: nothing over HTTP can empty it."""

    def __init__(self, url: str, options: Options) -> None:
        self._url = url
        self._options = options
        with httpx2.Client(timeout=options.timeout_s) as client:
            self._served = _served(client, url, options.model)
            name = str(self._served.get("id", options.model))
            found = probe(client, f"{url}/completions", name)
            self._block_size = None
            if found.of_flag(Flag.CACHED_TOKEN_COUNT) == YES:
                self._block_size = block_size(client, f"{url}/completions", name)
        support = dict(found.support)
        support[Flag.CHECKPOINT] = no("a server runs the model that it was started with")
        if options.checkpoint:
            support[Flag.CHECKPOINT] = conditional("the provenance checkpoint that it runs")
        self._model = name
        self._capabilities = Capabilities(support)

    def describe(self) -> EngineInfo:
        limit = self._served.get("max_model_len")
        return EngineInfo(
            name=f"{self._served.get('owned_by') or 'server'} at {self._url}",
            model=self._options.checkpoint or self._model,
            max_model_len=limit if isinstance(limit, int) else None,
            block_size=self._block_size,
            knobs={"cache": "shared by all sessions", "model": self._model},
        )

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def open(self, config: SessionConfig) -> "HttpSession":
        """Raises SessionRefused if the session asks for a pool, limits, or another model."""
        asked = {
            "cache": config.cache is not None,
            "scheduler": config.scheduler is not None,
            "vocab_size": config.vocab_size is not None,
            "failing_requests": bool(config.failing_requests),
            "fault": config.fault is not None,
            "model": config.model not in (None, self._options.checkpoint),
        }
        refused = [name for name, is_asked in asked.items() if is_asked]
        if refused:
            raise SessionRefused(f"{self._url}: a server that runs cannot change {refused}")
        return HttpSession(
            self.describe(), self._url, self._model, self._capabilities, self._options.timeout_s
        )

    def close(self) -> None:
        """Nothing is held between sessions."""


def _served(client: httpx2.Client, url: str, name: str) -> dict[str, Any]:
    """The server's own entry for the model."""
    try:
        answer = client.get(f"{url}/models")
        models = answer.json()["data"]
        entries: dict[str, dict[str, Any]] = {str(entry["id"]): entry for entry in models}
    except httpx2.TimeoutException:
        raise AdapterError(f"{url}: no answer; the server hangs") from None
    except httpx2.HTTPError as error:
        raise AdapterError(
            f"{url}: cannot be reached ({error}); start the server, or mend the address"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise AdapterError(
            f"{url}/models: no list of models came back; the address must end in the API's root, "
            "most often /v1"
        ) from None
    if not entries or (name and name not in entries):
        raise AdapterError(f"{url}: model {name!r} is not served; there are {sorted(entries)}")
    return entries[name or next(iter(entries))]


class HttpSession:
    """Requests go out together when `run` is called, each as one stream of its own."""

    def __init__(
        self, info: EngineInfo, url: str, model: str, can: Capabilities, silence_s: float
    ) -> None:
        self._url = f"{url}/completions"
        self._model = model
        self._can = can
        self._silence_s = silence_s
        self._waiting: dict[str, tuple[Request, int | None]] = {}
        self._seen: list[AnyObservation] = [info.opened()]

    def submit(self, request: Request, *, cancel_after: int | None = None) -> None:
        self._seen.append(
            Submitted(request_id=request.request_id, prompt_token_ids=request.prompt_token_ids)
        )
        unsent = unsent_fields(request.sampling_params, (*SENT, "seed", "ignore_eos"))
        if unsent or request.beam_search or request.adapter_id or request.media:
            names = ", ".join(unsent) or "beam searches, adapters or media"
            error = f"{names}: the adapter does not send them"
            self._seen.append(Refused(request_id=request.request_id, error=error))
        elif cancel_after == 0:
            self._seen.append(Cancelled(request_id=request.request_id))
        else:
            self._waiting[request.request_id] = (request, cancel_after)

    def cancel(self, request_id: str) -> None:
        """Requests are sent by `run`, which returns when all have ended: until then none runs."""
        if self._waiting.pop(request_id, None) is not None:
            self._seen.append(Cancelled(request_id=request_id))

    def run(self, timeout_s: float) -> None:
        waiting, self._waiting = list(self._waiting.values()), {}
        asyncio.run(self._run(waiting, timeout_s))

    def observations(self) -> Sequence[AnyObservation]:
        return self._seen

    def close(self) -> None:
        """Nothing is held between runs."""

    async def _run(self, waiting: list[tuple[Request, int | None]], timeout_s: float) -> None:
        limits, timeout = httpx2.Limits(max_connections=None), httpx2.Timeout(self._silence_s)
        async with httpx2.AsyncClient(timeout=timeout, limits=limits) as client:
            streams = [self._complete(client, *one) for one in waiting]
            try:
                async with asyncio.timeout(timeout_s):
                    ends = await asyncio.gather(*streams, return_exceptions=True)
            except TimeoutError:
                raise EngineTimeout(
                    f"{self._url}: requests were still running after {timeout_s:g} s; the server "
                    "hangs, or needs a larger --timeout"
                ) from None
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _complete(
        self, client: httpx2.AsyncClient, request: Request, cancel_after: int | None
    ) -> None:
        stream = events(client, self._url, body_of(request, self._model, self._can))
        reader = _Reader(request.request_id, self._seen)
        try:
            async for event in stream:
                reader.read(event)
                if cancel_after is not None and reader.num_tokens >= cancel_after:
                    self._seen.append(Cancelled(request_id=request.request_id))
                    return
        except Rejected as error:
            self._seen.append(Refused(request_id=request.request_id, error=str(error)))
        except BadAnswer as error:
            self._seen.append(Failed(request_id=request.request_id, error=str(error)))
        except httpx2.TimeoutException:
            raise EngineTimeout(
                f"{self._url}: silent for {self._silence_s:g} s in the middle of a stream"
            ) from None
        except httpx2.HTTPError as error:
            raise EngineDied(f"{self._url}: the connection broke ({error})") from None
        finally:
            await stream.aclose()


class _Reader:
    """Turns a stream's events into observations of one request."""

    def __init__(self, request_id: str, seen: list[AnyObservation]) -> None:
        self.num_tokens = 0
        """Of the first sample."""
        self._request_id = request_id
        self._seen = seen

    def read(self, event: dict[str, Any]) -> None:
        """Raises BadAnswer on an event that has not the protocol's shape."""
        try:
            for choice in event.get("choices") or ():
                self._choice(choice)
            details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
            if isinstance(details.get("cached_tokens"), int):
                self._seen.append(
                    CachedTokens(request_id=self._request_id, count=details["cached_tokens"])
                )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"an event has not the protocol's shape ({error!r})") from None

    def _choice(self, choice: dict[str, Any]) -> None:
        index = int(choice.get("index", 0))
        scores = choice.get("logprobs") or {}
        for place, token in enumerate(choice.get("token_ids") or ()):
            chosen = scores.get("token_logprobs") or ()
            tops = scores.get("top_logprobs") or ()
            self._seen.append(
                TokenSeen(
                    request_id=self._request_id,
                    sample_index=index,
                    token_id=int(token),
                    logprob=chosen[place] if place < len(chosen) else None,
                    top=_scored(tops[place]) if place < len(tops) else (),
                )
            )
            self.num_tokens += index == 0
        if choice.get("text"):
            text = str(choice["text"])
            self._seen.append(TextSeen(request_id=self._request_id, sample_index=index, text=text))
        if choice.get("finish_reason"):
            self._seen.append(
                Finished(
                    request_id=self._request_id,
                    sample_index=index,
                    reason=str(choice["finish_reason"]),
                    stop_reason=choice.get("stop_reason"),
                )
            )


def _scored(top: Mapping[str, float] | None) -> tuple[Scored, ...]:
    """Best first; tokens that are named by text are left out."""
    named = ((token_id(text), logprob) for text, logprob in (top or {}).items())
    found = [Scored(token, logprob) for token, logprob in named if token is not None]
    return tuple(sorted(found, key=lambda one: (-one.logprob, one.token_id)))
