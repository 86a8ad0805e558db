"""The sizes that kernels are timed on: those of two models."""

from dataclasses import dataclass, field

from pagetwin.conformance.bench.attention_cases import Batch, attention_batches


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What a layer's kernels must know of a model."""

    name: str
    hidden: int
    inner: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    num_layers: int
    vocab: int
    qk_norm: bool

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_size


QWEN3 = ModelShape(
    name="Qwen3-0.6B",
    hidden=1024,
    inner=3072,
    num_heads=16,
    num_kv_heads=8,
    head_size=128,
    num_layers=28,
    vocab=151936,
    qk_norm=True,
)
LLAMA3 = ModelShape(
    name="Llama-3.1-8B",
    hidden=4096,
    inner=14336,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    num_layers=32,
    vocab=128256,
    qk_norm=False,
)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """`rows` of a step, from one sequence that decodes to a chunk of a prompt; `samples` drawn."""

    models: tuple[ModelShape, ...] = (QWEN3, LLAMA3)
    rows: tuple[int, ...] = (1, 16, 64, 256, 2048, 8192)
    samples: tuple[int, ...] = (1, 64, 256)
    attention: list[Batch] = field(default_factory=attention_batches)
