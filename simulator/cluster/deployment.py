"""Decides the pool that a way to run a model makes: its memory, its costs, its price."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pagetwin.engine.config import CacheConfig, PreemptionMode, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.description import Pool, Role
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.costs.committed import committed_profiles
from pagetwin.simulator.costs.datasheets import gpu_named
from pagetwin.simulator.costs.model_shape import dtype_of, shape_of
from pagetwin.simulator.costs.pool_size import num_blocks_in
from pagetwin.simulator.costs.profile import Profile
from pagetwin.simulator.costs.roofline import Roofline

DEFAULT_CONTEXT = 8192
"""Of a model whose config.json names none."""


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How replicas of a model run. None: what follows from the model and the GPU."""

    gpu: str = "h100"
    replicas: int = 1
    role: Role = "serve"
    tp: int = 1
    """GPUs over which each matrix is divided (tensor parallel)."""
    pp: int = 1
    """Stages of layers, on GPUs of their own (pipeline parallel)."""
    dtype: str | None = None
    kv_dtype: str | None = None
    gpu_memory_utilization: float = 0.9
    num_blocks: int | None = None
    """KV blocks of a replica; better read from an engine's history than estimated."""
    block_size: int = 16
    num_host_blocks: int = 0
    prefix_caching: bool = True
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    policy: str = "fcfs"
    preemption_mode: PreemptionMode = "recompute"
    async_scheduling: bool = False
    wait_for_prefix: bool = False
    price: float | None = None
    """Of a GPU and hour; None: the guess beside its datasheet."""

    def pool(
        self, name: str, config: Mapping[str, Any], cost_model: CostModel | None = None
    ) -> Pool:
        """The pool for the model with that config.json; without a cost model, by the roofline.

        Raises ConfigError or ModelError for what is unknown or does not fit.
        """
        for knob in ("tp", "pp", "replicas", "block_size"):
            if getattr(self, knob) < 1:
                raise ConfigError(f"{knob}={getattr(self, knob)} is below 1; count them")
        gpu = gpu_named(self.gpu)
        context = config.get("max_position_embeddings") or DEFAULT_CONTEXT
        max_model_len = int(context) if self.max_model_len is None else self.max_model_len
        num_blocks = self._num_blocks(config) if self.num_blocks is None else self.num_blocks
        return Pool(
            name=name,
            role=self.role,
            num_replicas=self.replicas,
            cache=CacheConfig(
                num_blocks=num_blocks,
                block_size=self.block_size,
                num_host_blocks=self.num_host_blocks,
                enable_prefix_caching=self.prefix_caching,
            ),
            scheduler=SchedulerConfig(
                max_model_len=max_model_len,
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
                enable_chunked_prefill=self.chunked_prefill,
                long_prefill_token_threshold=self.long_prefill_token_threshold,
                policy=self.policy,
                preemption_mode=self.preemption_mode,
                async_scheduling=self.async_scheduling,
                wait_for_prefix=self.wait_for_prefix,
            ),
            cost_model=cost_model or self._roofline(config),
            num_gpus=self.tp * self.pp,
            price_per_gpu_h=gpu.price_per_h if self.price is None else self.price,
            power_per_gpu_w=gpu.power_w,
        )

    def calibrated(self, profile: Profile, config: Mapping[str, Any], engine: str) -> CostModel:
        """The profile's costs, if it is of this model, GPU and engine version.

        Raises ConfigError, with all that differs, if it is not; then its times say nothing.
        """
        wrong = self._differences(profile, config, engine)
        if wrong:
            raise ConfigError(
                f"the profile is of another deployment: {'; '.join(wrong)}; calibrate on a history "
                "of this one, or leave the profile out to get uncalibrated times"
            )
        return profile.cost_model(self.max_num_seqs)

    def measured(
        self, config: Mapping[str, Any], profiles: Sequence[Profile] | None = None
    ) -> CostModel | None:
        """The costs of the first profile that is of this deployment, whatever engine version.

        `profiles`: None for those that come with this package.
        """
        known = committed_profiles() if profiles is None else profiles
        for profile in known:
            if not self._differences(profile, config, ""):
                return profile.cost_model(self.max_num_seqs)
        return None

    def _differences(self, profile: Profile, config: Mapping[str, Any], engine: str) -> list[str]:
        """In what the profile is of another deployment: `GPU H100, not H200`."""
        subject = profile.subject
        # An engine that is run from its sources has no version; nothing is compared then.
        versions_known = subject.engine != "" and engine[:1].isdigit()
        ours = {
            "model": str(shape_of(config)),
            "GPU": gpu_named(self.gpu).name,
            "dtype": self._dtype(config),
            "KV dtype": self._kv_dtype or self._dtype(config),
            "GPUs of a replica": str(self.tp * self.pp),
            "engine version": engine if versions_known else "",
        }
        theirs = {
            "model": str(shape_of(profile.model_config)),
            "GPU": gpu_named(subject.device).name,
            "dtype": subject.dtype,
            "KV dtype": subject.dtype,
            "GPUs of a replica": "1",
            "engine version": subject.engine if versions_known else "",
        }
        return [
            f"{what} {theirs[what]}, not {ours[what]}"
            for what in ours
            if theirs[what] != ours[what]
        ]

    def kv_bytes_per_token(self, config: Mapping[str, Any]) -> int:
        """Of a whole replica."""
        dtype = self._kv_dtype or self._dtype(config)
        return shape_of(config).kv_bytes_per_token(dtype)

    @property
    def _kv_dtype(self) -> str | None:
        """None: as the model's."""
        return None if self.kv_dtype == "auto" else self.kv_dtype

    def _dtype(self, config: Mapping[str, Any]) -> str:
        return dtype_of(config) if self.dtype in (None, "auto") else str(self.dtype)

    def _num_blocks(self, config: Mapping[str, Any]) -> int:
        return num_blocks_in(
            gpu_named(self.gpu),
            shape_of(config),
            dtype=self._dtype(config),
            kv_dtype=self._kv_dtype,
            block_size=self.block_size,
            gpu_memory_utilization=self.gpu_memory_utilization,
            tensor_parallel=self.tp,
            pipeline_parallel=self.pp,
        )

    def _roofline(self, config: Mapping[str, Any]) -> Roofline:
        return Roofline(
            shape=shape_of(config),
            gpu=gpu_named(self.gpu),
            dtype=self._dtype(config),
            kv_dtype=self._kv_dtype,
            tensor_parallel=self.tp,
            pipeline_parallel=self.pp,
        )


def deployment_of(text: str, base: Deployment) -> Deployment:
    """`gpu=h200,replicas=2,tp=2`: the base with other values. Raises ConfigError."""
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in Deployment.__struct_fields__:
            raise ConfigError(
                f"pool {text!r}: {part!r} is not KNOB=VALUE; knobs are "
                f"{', '.join(Deployment.__struct_fields__)}"
            )
        given[key] = value
    try:
        # Text is converted to the types of the fields.
        return msgspec.convert(msgspec.structs.asdict(base) | given, Deployment, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"pool {text!r}: {error}") from None
