"""What a step costs by arithmetic alone: bytes over bandwidth, operations over peak.

Of matrix products and of attention each the longer of the two counts, and one comes after the
other. With efficiencies of 1 and no overhead that is a floor that no step can be under; with the
defaults it is a guess for hardware without measurements, and everything made from it says
`uncalibrated`. The default efficiencies are what one H100 reached: 686 of 989 TFLOP/s in a large
bfloat16 product, 3,018 of 3,350 GB/s in a copy. The overhead of a layer is an assumption.
"""

from functools import cached_property

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cost_model import NO_HOST, DecodeLine, HostTicks, StepComposition
from pagetwin.simulator.costs.datasheets import GPU
from pagetwin.simulator.costs.model_shape import ModelShape, dtype_bytes


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """What share of the datasheet is reached, and what a step costs beside it."""

    compute: float = 0.69
    bandwidth: float = 0.90
    layer_overhead_s: float = 15e-6
    """Of one layer: launches and tails of its kernels."""
    collective_latency_s: float = 10e-6
    """Of one all-reduce, or of one transfer between stages."""

    def __post_init__(self) -> None:
        for name in ("compute", "bandwidth"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"efficiency.{name}={value!r} is outside 0..1; it is a share")


PERFECT = Efficiency(compute=1.0, bandwidth=1.0, layer_overhead_s=0.0, collective_latency_s=0.0)


class Roofline(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A `CostModel` from a datasheet; `label` is what its results must carry.

    With tensor parallelism every GPU has its share of each matrix and two all-reduces a layer
    (ring: 2 (p - 1) / p of the bytes over the link). With pipeline parallelism a step passes
    through the stages one after the other, so that its time is a latency: what several steps in
    flight would gain is not counted.
    """

    shape: ModelShape
    gpu: GPU
    dtype: str = "bfloat16"
    kv_dtype: str | None = None
    """None: the same."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    efficiency: Efficiency = Efficiency()

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "pipeline_parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is below 1; count the GPUs")
        if self.shape.num_attention_heads % self.tensor_parallel:
            raise ConfigError(
                f"tensor_parallel={self.tensor_parallel} does not divide the model's "
                f"{self.shape.num_attention_heads} attention heads; use a divisor"
            )
        if self.pipeline_parallel > self.shape.num_layers:
            raise ConfigError(
                f"pipeline_parallel={self.pipeline_parallel} is above the model's "
                f"{self.shape.num_layers} layers"
            )
        self.gpu.flops(self.dtype)

    @property
    def label(self) -> str:
        return f"uncalibrated: roofline of the {self.gpu.name}'s datasheet"

    def ticks(self, parts: StepComposition) -> int:
        tokens = parts.num_prefill_tokens + parts.num_decode_sequences
        return (
            self._fixed(tokens, parts.num_samples)
            + self.context_ticks * (parts.num_context_tokens - parts.num_repeated_tokens)
            + self.pair_ticks * parts.prefill_area
        )

    def host_ticks(self, parts: StepComposition) -> HostTicks:
        """Of a host nothing is known here; what it costs is in the overhead of the layers."""
        return NO_HOST

    def decode_line(self, num_sequences: int, context: int, num_repeated: int = 0) -> DecodeLine:
        base = self._fixed(num_sequences, num_sequences) - self.context_ticks * num_repeated
        return DecodeLine(base, self.context_ticks)

    def _fixed(self, num_tokens: int, num_samples: int) -> int:
        seconds = self.matmul_s(num_tokens, num_samples) + self.communication_s(num_tokens)
        seconds += self.efficiency.layer_overhead_s * self.shape.num_layers
        return max(1, to_ticks(seconds))

    def matmul_s(self, num_tokens: int, num_samples: int) -> float:
        """Products with weights: read once, or multiplied, whichever takes longer."""
        shape, share = self.shape, 1 / self.tensor_parallel
        layers_s = max(
            shape.layer_parameters_read(num_tokens) * dtype_bytes(self.dtype) / self._bandwidth,
            2 * shape.token_parameters * num_tokens / self._flops,
        )
        head_s = max(
            shape.head_parameters * dtype_bytes(self.dtype) / self._bandwidth,
            2 * shape.head_parameters * num_samples / self._flops,
        )
        return share * (layers_s + (head_s if num_samples else 0.0))

    def communication_s(self, num_tokens: int) -> float:
        """All-reduces of tensor parallelism, transfers of pipeline parallelism."""
        count = self.tensor_parallel
        num_bytes = num_tokens * self.shape.hidden_size * dtype_bytes(self.dtype)
        one_way = self.gpu.link_bandwidth / 2
        latency = self.efficiency.collective_latency_s
        seconds = 0.0
        if count > 1:
            reduce_s = 2 * (count - 1) / count * num_bytes / one_way + latency
            seconds += 2 * self.shape.num_layers * reduce_s
        return seconds + (self.pipeline_parallel - 1) * (num_bytes / one_way + latency)

    @cached_property
    def context_ticks(self) -> int:
        """For each token that a decoding sequence sees: its keys and values are read."""
        return to_ticks(self._kv_bytes / self._bandwidth)

    @cached_property
    def pair_ticks(self) -> int:
        """For each query-key pair of a prefilling sequence."""
        flops = self.shape.attention_flops_per_pair / self.tensor_parallel
        return to_ticks(flops / self._flops)

    @property
    def _kv_bytes(self) -> int:
        return self.shape.kv_bytes_per_token(self.kv_dtype or self.dtype, self.tensor_parallel)

    @property
    def _bandwidth(self) -> float:
        return self.gpu.memory_bandwidth * self.efficiency.bandwidth

    @property
    def _flops(self) -> float:
        return self.gpu.flops(self.dtype) * self.efficiency.compute
