"""Decides what becomes of requests that a model's context is too short for."""

from collections.abc import Iterator

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request
from pagetwin.simulator.workloads.workload import Arrival, Stream, Workload


class Trimmed:
    """A workload whose prompts are cut at their end, and outputs after that, so that each request
    fits a model of `max_model_len` tokens. ConfigError if that is below 2."""

    def __init__(self, workload: Workload, max_model_len: int) -> None:
        if max_model_len < 2:
            raise ConfigError(f"max_model_len={max_model_len} is below 2; no request fits that")
        self._workload = workload
        self._max_model_len = max_model_len

    def begin(self, seed: int) -> "TrimmedStream":
        return TrimmedStream(self._workload.begin(seed), self._max_model_len)


class TrimmedStream:
    def __init__(self, stream: Stream, max_model_len: int) -> None:
        self._stream = stream
        self._max_model_len = max_model_len

    @property
    def reacts(self) -> bool:
        return self._stream.reacts

    def arrivals(self) -> Iterator[Arrival]:
        return (self._trimmed(arrival) for arrival in self._stream.arrivals())

    def follow_up(self, request_id: str, now_s: float) -> Arrival | None:
        arrival = self._stream.follow_up(request_id, now_s)
        return None if arrival is None else self._trimmed(arrival)

    def _trimmed(self, arrival: Arrival) -> Arrival:
        return Arrival(trimmed(arrival.request, self._max_model_len), arrival.session)


def trimmed(request: Request, max_model_len: int) -> Request:
    """The request, cut to leave room for an output token, and its output to what is left."""
    params = request.sampling_params
    prompt = request.prompt_token_ids[: max_model_len - 1]
    room = max_model_len - len(prompt)
    if len(prompt) == request.num_prompt_tokens and (params.max_tokens or 0) <= room:
        return request
    most = min(params.max_tokens or room, room)
    cut = msgspec.structs.replace(params, max_tokens=most, min_tokens=min(params.min_tokens, most))
    return msgspec.structs.replace(request, prompt_token_ids=prompt, sampling_params=cut)
