"""The engine's configuration: one frozen tree, checked once, when it is made.

Values found at run time (the number of KV blocks after memory profiling, say) are made into
a new tree with `msgspec.structs.replace`; nothing writes into an existing one.
"""

from typing import Any, Literal

import msgspec

from pagetwin.engine.errors import ConfigError

PreemptionMode = Literal["recompute", "swap"]
DType = Literal["auto", "float32", "float16", "bfloat16"]
LoadFormat = Literal["auto", "safetensors", "bin", "gguf", "dummy"]


def _require(ok: bool, knob: str, value: Any, limit: str, remedy: str) -> None:
    if not ok:
        raise ConfigError(f"{knob}={value!r} {limit}; {remedy}")


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The KV memory: sizes in blocks, and what may be shared (docs/policy.md P1, P4)."""

    num_blocks: int
    """Device blocks, the null block 0 included (N)."""
    block_size: int = 16
    """Tokens per block (B)."""
    num_host_blocks: int = 0
    """Blocks of the host pool that swapped-out sequences use (H)."""
    enable_prefix_caching: bool = True
    enable_partial_hits: bool = True
    """Reuse the first m < B tokens of a cached block by copying it (P2.4a)."""
    watermark_blocks: int = 0
    """Blocks kept free at admission (W)."""
    sliding_window: int = 0
    """Tokens each layer looks back, itself included, where every layer has one; 0 = off (P4.7)."""
    kv_cache_dtype: str = "auto"
    """Part of every prefix-cache key."""
    weights_version: str = ""
    """Part of every prefix-cache key."""

    def __post_init__(self) -> None:
        _require(
            self.num_blocks >= 2,
            "cache.num_blocks",
            self.num_blocks,
            "is below 2",
            "block 0 is the null block, so at least one more is needed",
        )
        _require(
            self.block_size >= 1,
            "cache.block_size",
            self.block_size,
            "is below 1",
            "use 16 unless the attention backend asks for another size",
        )
        _require(
            self.num_host_blocks >= 0,
            "cache.num_host_blocks",
            self.num_host_blocks,
            "is negative",
            "use 0 for no host pool",
        )
        _require(
            0 <= self.watermark_blocks < self.num_blocks - 1,
            "cache.watermark_blocks",
            self.watermark_blocks,
            f"is outside 0..{self.num_blocks - 2}",
            "keep it below the usable blocks (num_blocks - 1)",
        )
        _require(
            self.sliding_window >= 0,
            "cache.sliding_window",
            self.sliding_window,
            "is negative",
            "use 0 for full attention",
        )


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a step may hold and in which order sequences get it (docs/policy.md P1 to P3)."""

    max_model_len: int
    """Longest sequence in tokens, prompt and output together (M)."""
    max_num_seqs: int = 256
    """Running sequences at once (S)."""
    max_num_batched_tokens: int = 2048
    """Tokens of one step (T)."""
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    """Most tokens a prefilling sequence gets in one step; 0 = no such limit (L)."""
    policy: str = "fcfs"
    """fcfs, priority, a name registered under the entry point pagetwin.policies, or
    `package.module:attribute`."""
    preemption_mode: PreemptionMode = "recompute"
    num_lookahead_slots: int = 0
    """Slots reserved beyond the tokens of a step, for speculation (K)."""
    async_scheduling: bool = False
    """Plan a step while the one before is in flight (P5.3)."""
    wait_for_prefix: bool = False
    """Pass a request over while its next block is being computed (P2.4e). LLM has it on; it is off
    here, so that it is off in what was recorded before it was there."""

    def __post_init__(self) -> None:
        for knob in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
            value = getattr(self, knob)
            _require(value >= 1, f"scheduler.{knob}", value, "is below 1", "give a positive number")
        for knob in ("long_prefill_token_threshold", "num_lookahead_slots"):
            value = getattr(self, knob)
            _require(
                value >= 0, f"scheduler.{knob}", value, "is negative", "use 0 to switch it off"
            )
        _require(
            self.max_model_len >= 2,
            "scheduler.max_model_len",
            self.max_model_len,
            "is below 2",
            "a sequence needs a prompt token and an output token",
        )
        _require(
            self.max_num_batched_tokens >= self.max_num_seqs,
            "scheduler.max_num_batched_tokens",
            self.max_num_batched_tokens,
            f"is below max_num_seqs={self.max_num_seqs}",
            "raise it, or lower max_num_seqs, so that every running sequence can get a token",
        )
        if not self.enable_chunked_prefill:
            _require(
                self.max_num_batched_tokens >= self.max_model_len,
                "scheduler.max_num_batched_tokens",
                self.max_num_batched_tokens,
                f"is below max_model_len={self.max_model_len} without chunked prefill",
                "raise it, lower max_model_len, or enable chunked prefill",
            )
            _require(
                self.long_prefill_token_threshold == 0,
                "scheduler.long_prefill_token_threshold",
                self.long_prefill_token_threshold,
                "has no meaning without chunked prefill",
                "set it to 0 or enable chunked prefill",
            )
        _require(
            self.long_prefill_token_threshold <= self.max_model_len,
            "scheduler.long_prefill_token_threshold",
            self.long_prefill_token_threshold,
            f"is above max_model_len={self.max_model_len}",
            "lower it, or use 0 for no limit",
        )
        _require(
            bool(self.policy), "scheduler.policy", self.policy, "is empty", "use fcfs or priority"
        )


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model, and how its weights are read. Used by the torch half only."""

    model: str
    """A folder in Hugging Face format, a GGUF file, a known name, or a hub name."""
    tokenizer: str | None = None
    """Where the tokenizer is, if not beside the model."""
    skip_tokenizer: bool = False
    """Work with token ids alone."""
    dtype: DType = "auto"
    load_format: LoadFormat = "auto"
    seed: int = 0
    """Seed of dummy weights and of requests without a seed of their own."""

    def __post_init__(self) -> None:
        _require(
            bool(self.model), "model.model", self.model, "is empty", "name a model or a folder"
        )


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an engine run depends on. `model` is None where no model is run."""

    cache: CacheConfig
    scheduler: SchedulerConfig
    model: ModelConfig | None = None
    attention_backend: str = "auto"
    enforce_eager: bool = False
    """Launch every kernel by itself, instead of whole decode steps as CUDA graphs."""
    batch_invariant: bool = True
    """Bits of a sequence's logits do not depend on what is computed beside it (GPU only)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_logprobs: int = 20
    """Most logprobs that a request may ask for at each position."""
    debug_invariants: bool = False
    """Recount the scheduler's and the pool's books after every step."""

    def __post_init__(self) -> None:
        _require(
            self.max_logprobs >= 0,
            "max_logprobs",
            self.max_logprobs,
            "is negative",
            "use 0 to allow none",
        )
        usable_tokens = (self.cache.num_blocks - 1) * self.cache.block_size
        lookahead = self.scheduler.num_lookahead_slots
        _require(
            usable_tokens >= 1 + max(1, lookahead),
            "cache.num_blocks",
            self.cache.num_blocks,
            f"holds {usable_tokens} tokens, too few for one prompt token, one output token and "
            f"num_lookahead_slots={lookahead}",
            "raise num_blocks or block_size",
        )
