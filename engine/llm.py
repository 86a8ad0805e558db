"""Offline use: makes an engine from loose knobs, and runs lists of prompts to their end."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from pagetwin.engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, RequestError
from pagetwin.engine.llm_engine import LLMEngine, Prompt
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.tokenizer import ChatMessage
from pagetwin.engine.trace import HistoryWriter

if TYPE_CHECKING:
    import torch

    from pagetwin.engine.models.loader import LoadedModel
    from pagetwin.engine.models.spec import ModelSpec

CPU_KV_BYTES = 2**30
GPU_MEMORY_UTILIZATION = 0.9
"""Share of a GPU's memory that an engine uses in all, unless a knob says otherwise."""
GPU_BATCHED_TOKENS = 16384
"""Tokens of a step on a GPU, unless a knob says otherwise: enough to keep it busy."""

_Params = TypeVar("_Params", SamplingParams, BeamSearchParams)
_Config = TypeVar("_Config", bound=msgspec.Struct)
_Number = TypeVar("_Number", int, float)

_CONFIGS: tuple[type[msgspec.Struct], ...] = (
    ModelConfig,
    CacheConfig,
    SchedulerConfig,
    EngineConfig,
)
_MEMORY_KNOB = "kv_cache_memory_bytes"
_UTILIZATION_KNOB = "gpu_memory_utilization"


class LLM:
    """A model that turns prompts into outputs, a whole list at a time.

        llm = LLM("SmolLM2-135M-Instruct", max_model_len=2048)
        [output] = llm.generate("Paged attention is")
        print(output.outputs[0].text)

    Knobs are the fields of ModelConfig, CacheConfig, SchedulerConfig and EngineConfig by name.
    What is not given comes from the model (max_model_len, sliding_window), from the device (a GPU
    gets larger steps, and async_scheduling) or from the memory there is: num_blocks is what fits
    in the knob kv_cache_memory_bytes. Its default is 1 GiB on a CPU; on a GPU it is measured, for
    an engine that uses the share gpu_memory_utilization of the GPU's memory in all. Prompts that
    begin alike wait for one another (wait_for_prefix), so that what they share is computed once.

    Raises ConfigError on a knob that is unknown or out of range, ModelError if the model or its
    tokenizer cannot be read.
    """

    def __init__(self, model: str, **knobs: Any) -> None:
        self.engine = engine_from_knobs(model, knobs)
        self._num_submitted = 0

    @classmethod
    def from_engine(cls, engine: LLMEngine) -> "LLM":
        """Runs lists of prompts on an engine made elsewhere, which nobody else steps."""
        llm = cls.__new__(cls)
        llm.engine = engine
        llm._num_submitted = 0
        return llm

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """The outputs of all prompts, in their order.

        A prompt is a text or a list of token ids; one that stands alone is a list of one.
        `params` are for all the prompts, or one for each. Raises RequestError, and runs
        nothing, if a prompt is refused.
        """
        some = _as_list(prompts)
        each = _one_for_each(params if params is not None else SamplingParams(), len(some))
        each = [msgspec.structs.replace(p, output_kind="final_only") for p in each]
        return self._run(some, each, [None] * len(some), progress=progress)

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """The answers to one chat, or to each of a list of chats, in their order.

        A message is {"role": ..., "content": ...}. Raises like `generate`.
        """
        one = bool(messages) and isinstance(messages[0], Mapping)
        chats: Sequence[Any] = [messages] if one or isinstance(messages, str) else messages
        for chat in chats:
            # What is no chat would pass for a prompt, and be gone on with instead of answered.
            if not chat or not all(isinstance(message, Mapping) for message in chat):
                raise RequestError(
                    f"{chat!r} is no chat; give a list of messages, each "
                    '{"role": ..., "content": ...}, or use generate for a prompt'
                )
        return self.generate(chats, params, progress=progress)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        beam_search: BeamSearchParams | Sequence[BeamSearchParams],
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """The best hypotheses for all prompts, in their order.

        `params` gives max_tokens, min_tokens, and as n the hypotheses to return. Raises like
        `generate`.
        """
        some = _as_list(prompts)
        searches = _one_for_each(beam_search, len(some))
        shared = [params if params is not None else SamplingParams()] * len(some)
        return self._run(some, shared, searches, progress=progress)

    def _run(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        searches: Sequence[BeamSearchParams | None],
        *,
        progress: bool,
    ) -> list[RequestOutput]:
        done: dict[str, RequestOutput] = {}
        ids: list[str] = []
        try:
            for prompt, some_params, search in zip(prompts, params, searches, strict=True):
                # Ids rise with submission, so that equal arrival times keep its order.
                request_id = f"{self._num_submitted:012d}"
                self._num_submitted += 1
                self.engine.add_request(
                    request_id, prompt, some_params, beam_search=search, arrival_s=0.0
                )
                ids.append(request_id)
            self._finish(ids, done, progress=progress)
        finally:
            # After a refusal or an interrupt nothing of this call stays behind.
            self.engine.abort_request([i for i in ids if i not in done])
        return [done[request_id] for request_id in ids]

    def _finish(
        self, ids: Sequence[str], done: dict[str, RequestOutput], *, progress: bool
    ) -> None:
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        wanted = set(ids)
        with Progress(*columns, disable=not progress) as bar:
            task = bar.add_task("requests", total=len(ids))
            while len(done) < len(ids):
                for output in self.engine.step():
                    if output.finished and output.request_id in wanted:
                        done[output.request_id] = output
                        bar.advance(task)


def engine_from_knobs(
    model: str,
    knobs: Mapping[str, Any],
    *,
    loaded: "LoadedModel | None" = None,
    history: HistoryWriter | None = None,
) -> LLMEngine:
    """The engine that LLM(model, **knobs) runs; for other front ends too.

    `loaded` is the model where the caller has loaded it, by the same knobs.
    """
    from pagetwin.engine.factory import cache_sliding_window, resolve_device
    from pagetwin.engine.models.loader import load_model

    values = sort_knobs({"model": model, **knobs})
    memory_knobs = {
        name: values[EngineConfig].pop(name)
        for name in (_MEMORY_KNOB, _UTILIZATION_KNOB)
        if name in values[EngineConfig]
    }
    if memory_knobs and "num_blocks" in values[CacheConfig]:
        raise ConfigError(
            f"num_blocks and {', '.join(memory_knobs)} say the same thing; give one of them"
        )
    model_config = build(ModelConfig, values[ModelConfig])
    device = resolve_device(values[EngineConfig].get("device", "auto"))
    if loaded is None:
        loaded = load_model(model_config, device)
    # More blocks than any memory holds, until the other knobs say how many fit.
    cache_defaults = {
        "num_blocks": 2**40,
        "sliding_window": cache_sliding_window(loaded.spec),
    }
    sections = {
        "model": model_config,
        "cache": build(CacheConfig, cache_defaults | values[CacheConfig]),
        "scheduler": _scheduler_config(values[SchedulerConfig], loaded.spec, device),
    }
    config = build(EngineConfig, sections | values[EngineConfig])
    if "num_blocks" not in values[CacheConfig]:
        num_bytes = _memory_bytes(memory_knobs, config, loaded, device)
        num_blocks = num_blocks_for(loaded.spec, config.cache, config.scheduler, num_bytes)
        cache = msgspec.structs.replace(config.cache, num_blocks=num_blocks)
        config = msgspec.structs.replace(config, cache=cache)
    return LLMEngine.from_config(config, loaded=loaded, history=history)


def _scheduler_config(
    values: Mapping[str, Any], spec: "ModelSpec", device: "torch.device"
) -> SchedulerConfig:
    defaults: dict[str, Any] = {"max_model_len": spec.max_model_len, "wait_for_prefix": True}
    if device.type == "cuda":
        max_num_seqs = values.get("max_num_seqs", 0)
        if isinstance(max_num_seqs, int):
            defaults["max_num_batched_tokens"] = max(GPU_BATCHED_TOKENS, max_num_seqs)
        defaults["async_scheduling"] = True
    return build(SchedulerConfig, defaults | dict(values))


def _memory_bytes(
    knobs: Mapping[str, Any], config: EngineConfig, loaded: "LoadedModel", device: "torch.device"
) -> int:
    """Memory for KV blocks, as the knobs say; call it when the weights are loaded."""
    from pagetwin.engine.factory import measured_kv_bytes

    if _MEMORY_KNOB in knobs:
        if _UTILIZATION_KNOB in knobs:
            raise ConfigError(
                f"{_MEMORY_KNOB} and {_UTILIZATION_KNOB} say the same thing; give one of them"
            )
        return _positive(_MEMORY_KNOB, knobs[_MEMORY_KNOB], int)
    utilization = _positive(
        _UTILIZATION_KNOB, knobs.get(_UTILIZATION_KNOB, GPU_MEMORY_UTILIZATION), float
    )
    if utilization > 1:
        raise ConfigError(f"{_UTILIZATION_KNOB}={utilization} is above 1; it is a share")
    if device.type != "cuda":
        if _UTILIZATION_KNOB in knobs:
            raise ConfigError(
                f"{_UTILIZATION_KNOB}={utilization} has no meaning on a CPU; use {_MEMORY_KNOB}"
            )
        return CPU_KV_BYTES
    return measured_kv_bytes(config, loaded, utilization)


def _positive(name: str, value: Any, kind: type[_Number]) -> _Number:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"{name}={value!r} is not a positive number; give one, or leave it out")
    return kind(value)


def num_blocks_for(
    spec: "ModelSpec", cache: CacheConfig, scheduler: SchedulerConfig, memory_bytes: int
) -> int:
    """Blocks of a pool of that many bytes, the null block included; no more than can be in use.

    Raises ConfigError if the memory holds less than two.
    """
    from pagetwin.engine.kv_cache import KVCacheLayout

    layout = KVCacheLayout(
        num_layers=spec.num_layers,
        block_size=cache.block_size,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        dtype=spec.dtype,
    )
    longest = -(-(scheduler.max_model_len + scheduler.num_lookahead_slots) // cache.block_size)
    useful = 1 + scheduler.max_num_seqs * longest
    return min(useful, layout.num_blocks_for_bytes(memory_bytes))


def sort_knobs(knobs: Mapping[str, Any]) -> dict[type[msgspec.Struct], dict[str, Any]]:
    """The knobs of each configuration section. Raises ConfigError on a name of none."""
    values: dict[type[msgspec.Struct], dict[str, Any]] = {config: {} for config in _CONFIGS}
    section_of: dict[str, type[msgspec.Struct]] = dict.fromkeys(
        (_MEMORY_KNOB, _UTILIZATION_KNOB), EngineConfig
    )
    for config in reversed(_CONFIGS):
        section_of.update(dict.fromkeys(config.__struct_fields__, config))
    for section in ("cache", "scheduler"):
        del section_of[section]
    for name, value in knobs.items():
        if name not in section_of:
            near = difflib.get_close_matches(name, section_of, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(section_of)}"
            raise ConfigError(f"unknown knob {name!r}={value!r}; {hint}")
        values[section_of[name]][name] = value
    return values


def build(config: type[_Config], values: Mapping[str, Any]) -> _Config:
    """A configuration section, types checked too. Raises ConfigError."""
    try:
        return msgspec.convert(dict(values), config)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(f"{config.__name__}: {error}; give a value of that type") from None


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Any]:
    """A list of prompts, from one or from a sequence of them."""
    if isinstance(prompts, str):
        return [prompts]
    items: list[Any] = list(prompts)
    return [items] if items and isinstance(items[0], int | Mapping) else items


def _one_for_each(params: _Params | Sequence[_Params], count: int) -> list[_Params]:
    if isinstance(params, SamplingParams | BeamSearchParams):
        return [params] * count
    if len(params) != count:
        raise ConfigError(
            f"{len(params)} sets of parameters for {count} prompts; give one for all, or one each"
        )
    return list(params)
