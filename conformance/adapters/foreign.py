"""What the adapters of other people's engines share: knobs they lack, and the run written down."""

from collections import Counter
from collections.abc import Collection, Iterable

import msgspec

from pagetwin.conformance.adapters.protocol import EngineInfo, SessionConfig, SessionRefused
from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.conformance.observation import (
    AnyObservation,
    CachedTokens,
    Cancelled,
    Finished,
    PromptScored,
    Refused,
    Scored,
    Submitted,
    TokenSeen,
)
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import Counters, FinishedSequence, FinishReason, StepPlan
from pagetwin.engine.trace import (
    AbortRecord,
    HeaderRecord,
    PlanRecord,
    Record,
    RefuseRecord,
    ResultRecord,
    SubmitRecord,
)


def check_knobs(name: str, config: SessionConfig, *, sliding_window: int, vocab_size: int) -> None:
    """Raises SessionRefused for what no other engine takes: knobs of docs/policy.md alone.

    Partial hits are allowed by the configuration, never demanded, so an engine without them obeys.
    A vocabulary that holds all tokens of the one that is asked for will do.
    """
    cache, limits = config.cache, config.scheduler
    asked: dict[str, bool] = {}
    if cache is not None:
        asked["num_host_blocks"] = cache.num_host_blocks > 0
        asked["kv_cache_dtype"] = cache.kv_cache_dtype != "auto"
        asked["weights_version"] = bool(cache.weights_version)
        asked["sliding_window"] = cache.sliding_window not in (0, sliding_window)
    if limits is not None:
        asked["preemption_mode"] = limits.preemption_mode != "recompute"
        asked["num_lookahead_slots"] = limits.num_lookahead_slots > 0
        asked["long_prefill_token_threshold"] = limits.long_prefill_token_threshold > 0
        asked["enable_chunked_prefill"] = not limits.enable_chunked_prefill
        asked["policy"] = limits.policy != "fcfs"
        asked["async_scheduling"] = limits.async_scheduling
        asked["wait_for_prefix"] = limits.wait_for_prefix
    asked["failing_requests"] = bool(config.failing_requests)
    asked["fault"] = config.fault is not None
    asked["vocab_size"] = (config.vocab_size or 0) > vocab_size
    refused = [knob for knob, is_asked in asked.items() if is_asked]
    if refused:
        raise SessionRefused(f"{name} has no equal of {', '.join(refused)}; leave out of a session")


def _asked(request: Request) -> list[Flag]:
    """Flags that a request cannot do without."""
    params = request.sampling_params
    asked = {
        Flag.SAMPLES: request.num_samples > 1 and request.beam_search is None,
        Flag.TEMPERATURE: not params.is_greedy,
        Flag.STOP_STRINGS: bool(params.stop),
        Flag.STOP_TOKENS: bool(params.stop_token_ids),
        Flag.PRIORITY: request.priority != 0,
        Flag.CACHE_SALT: request.cache_salt is not None,
        Flag.TOPK_LOGPROB: bool(params.logprobs),
        Flag.PROMPT_LOGPROBS: params.prompt_logprobs is not None,
    }
    return [flag for flag, is_asked in asked.items() if is_asked]


NEVER_SENT = ("output_kind", "detokenize", "skip_special_tokens")
"""Fields of SamplingParams about how text is handed out, not about which tokens come."""
BY_FLAG = ("n", "temperature", "stop", "stop_token_ids", "logprobs", "prompt_logprobs")
"""Fields that a flag or the session speaks for."""


def unsent_fields(params: SamplingParams, sent: Collection[str]) -> list[str]:
    """Fields that are set and that an adapter which sends only `sent` would drop in silence."""
    plain = SamplingParams()
    known = (*NEVER_SENT, *BY_FLAG, "max_tokens", *sent)
    fields = [name for name in params.__struct_fields__ if name not in known]
    return [name for name in fields if getattr(params, name) != getattr(plain, name)]


class Sampled(msgspec.Struct, frozen=True):
    """One new token of one of a request's samples, and whether it was the last."""

    request_id: str
    token_id: int
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    top: tuple[Scored, ...] = ()
    sample_index: int = 0


class ForeignRun:
    """Writes down a run of an engine that is not ours, in both vocabularies: what a client saw,
    and, where the engine shows its steps, records of them."""

    def __init__(self, info: EngineInfo, cache: CacheConfig, limits: SchedulerConfig) -> None:
        self.observations: list[AnyObservation] = [info.opened()]
        self.records: list[Record] = [
            HeaderRecord(
                cache=cache,
                scheduler=limits,
                engine=info.name,
                versions={info.name: info.version},
                model=info.model,
                device=info.device,
            )
        ]
        self._engine = info.name
        self._limits = limits
        self._live: dict[str, Request] = {}
        self._patience: dict[str, int] = {}
        self._num_seen: Counter[str] = Counter()
        """Tokens of first samples, by request."""
        self._num_ended: Counter[str] = Counter()
        """Samples, by request."""
        self._scored: set[str] = set()
        self._begun: set[str] = set()

    def refuses(self, request: Request, can: Capabilities, sent: Collection[str]) -> bool:
        """Refuses, and writes down, what the engine would take but not keep to.

        `sent` names the fields of SamplingParams, beyond those of flags, that reach the engine.
        """
        params, limit = request.sampling_params, self._limits.max_model_len
        lacking = [flag for flag in _asked(request) if not can.has(flag)]
        unsent = unsent_fields(params, sent)
        if lacking:
            error = f"{lacking[0]}: {can.of_flag(lacking[0]).reason}"
        elif unsent:
            error = f"{', '.join(unsent)}: the adapter does not pass them on"
        elif request.num_prompt_tokens + (params.max_tokens or 1) > limit:
            error = f"prompt and max_tokens together are above max_model_len={limit}"
        elif request.beam_search or request.adapter_id or request.media:
            error = "beam searches, adapters and media have no equal"
        else:
            return False
        self.refused(request, f"{self._engine}: {error}")
        return True

    def refused(self, request: Request, error: str) -> None:
        self._submitted(request)
        self.observations.append(Refused(request_id=request.request_id, error=error))
        self.records.append(RefuseRecord(request=request, error=error))

    def max_tokens(self, request: Request) -> int:
        """What the request may generate; where it does not say, what the context leaves."""
        left = self._limits.max_model_len - request.num_prompt_tokens
        return request.sampling_params.max_tokens or left

    def submitted(self, request: Request, counters: Counters, *, cancel_after: int | None) -> None:
        self._live[request.request_id] = request
        self._submitted(request)
        self.records.append(SubmitRecord(request=request, counters=counters))
        if cancel_after is not None:
            self._patience[request.request_id] = cancel_after

    def cancelled(self, request_id: str, counters: Counters) -> None:
        self._live.pop(request_id)
        self._patience.pop(request_id, None)
        self.observations.append(Cancelled(request_id=request_id))
        self.records.append(AbortRecord(request_id=request_id, found=True, counters=counters))

    def scored(self, request_id: str, logprobs: Iterable[float]) -> None:
        """Log-probabilities of the prompt's tokens but the first; of its first sample to come."""
        if request_id in self._live and request_id not in self._scored:
            self._scored.add(request_id)
            self.observations.append(PromptScored(request_id=request_id, logprobs=tuple(logprobs)))

    def planned(
        self, plan: StepPlan, counters: Counters, block_tables: dict[str, tuple[int, ...]]
    ) -> None:
        for one in plan.introduced:
            if one.request_id not in self._begun:
                self._begun.add(one.request_id)
                self.observations.append(
                    CachedTokens(request_id=one.request_id, count=one.num_cached_tokens)
                )
        record = PlanRecord(plan=plan, counters=counters, block_tables=block_tables)
        self.records.append(record)

    def closed(self, step: int, sampled: Iterable[Sampled], counters: Counters) -> None:
        tokens: dict[str, int] = {}
        finished: list[FinishedSequence] = []
        for one in sampled:
            if one.request_id not in self._live:
                continue
            seq_id = sequence_id(one.request_id, one.sample_index)
            tokens[seq_id] = one.token_id
            self._num_seen[one.request_id] += one.sample_index == 0
            self.observations.append(
                TokenSeen(
                    request_id=one.request_id,
                    sample_index=one.sample_index,
                    token_id=one.token_id,
                    logprob=one.logprob,
                    top=one.top,
                )
            )
            if one.finish_reason is not None:
                finished.append(FinishedSequence(seq_id, one.finish_reason))
                self._ended(one, one.finish_reason)
        self.records.append(
            ResultRecord(step=step, sampled=tokens, finished=tuple(finished), counters=counters)
        )

    def _ended(self, last: Sampled, reason: FinishReason) -> None:
        """A sample is over, and with the last of them its request."""
        request_id = last.request_id
        self.observations.append(
            Finished(request_id=request_id, sample_index=last.sample_index, reason=reason)
        )
        self._num_ended[request_id] += 1
        if self._num_ended[request_id] == self._live[request_id].num_samples:
            self._live.pop(request_id)
            self._patience.pop(request_id, None)

    def due_hang_ups(self) -> list[str]:
        """Requests whose clients have seen as much of the first sample as they had patience for."""
        return [r for r, patience in self._patience.items() if self._num_seen[r] >= patience]

    def is_live(self, request_id: str) -> bool:
        return request_id in self._live

    def has_live_requests(self) -> bool:
        return bool(self._live)

    def request(self, request_id: str) -> Request | None:
        return self._live.get(request_id)

    def _submitted(self, request: Request) -> None:
        self.observations.append(
            Submitted(request_id=request.request_id, prompt_token_ids=request.prompt_token_ids)
        )
