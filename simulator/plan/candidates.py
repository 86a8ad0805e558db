"""What may be bought and set: GPUs, how a model is spread over them, and the engine's knobs."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.costs.datasheets import gpu_named


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, and how requests are sent to several of it."""

    gpu: str
    tensor_parallel: int = 1
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    long_prefill_token_threshold: int = 0
    """Tokens of one prompt in a step; 0: as many as fit."""
    kv_cache_dtype: str = "auto"
    enable_prefix_caching: bool = True
    router: str = "least_outstanding"

    @property
    def price_per_h(self) -> float:
        """Of one replica, US dollars, by the datasheet's guess."""
        return self.tensor_parallel * gpu_named(self.gpu).price_per_h

    def __str__(self) -> str:
        default = Design(gpu=self.gpu)
        changed = [
            f"{name}={value}"
            for name, value in msgspec.structs.asdict(self).items()
            if name not in ("gpu", "tensor_parallel") and value != getattr(default, name)
        ]
        return " ".join([f"{self.gpu} x{self.tensor_parallel}", *changed])


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """So many replicas of a design."""

    design: Design
    num_replicas: int

    @property
    def num_gpus(self) -> int:
        return self.num_replicas * self.design.tensor_parallel

    @property
    def price_per_h(self) -> float:
        return self.num_replicas * self.design.price_per_h

    def __str__(self) -> str:
        return f"{self.num_replicas} x ({self.design})"


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What the search may choose from; the first of each is where it starts.

    Raises ConfigError on an empty list or an unknown GPU.
    """

    gpus: tuple[str, ...]
    tensor_parallel: tuple[int, ...] = (1, 2, 4, 8)
    max_num_seqs: tuple[int, ...] = (256, 64, 128, 512)
    max_num_batched_tokens: tuple[int, ...] = (8192, 2048, 16384)
    long_prefill_token_threshold: tuple[int, ...] = (0, 512, 2048)
    kv_cache_dtype: tuple[str, ...] = ("auto",)
    enable_prefix_caching: tuple[bool, ...] = (True, False)
    router: tuple[str, ...] = ("least_outstanding", "least_kv", "prefix_affinity", "power_of_two")

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name):
                raise ConfigError(f"plan: {name} has nothing to choose from; give at least one")
        for gpu in self.gpus:
            gpu_named(gpu)

    def hardware(self) -> Iterator[Design]:
        """Each GPU and spread with the knobs that the search starts from."""
        knobs: dict[str, Any] = {name: getattr(self, name)[0] for name in self.knobs}
        for gpu, spread in product(self.gpus, self.tensor_parallel):
            yield Design(gpu=gpu_named(gpu).name, tensor_parallel=spread, **knobs)

    def changes(self, design: Design) -> Iterator[Design]:
        """The design with one knob set to another choice, knob by knob."""
        for name in self.knobs:
            for value in getattr(self, name):
                if value != getattr(design, name):
                    yield msgspec.structs.replace(design, **{name: value})

    @property
    def knobs(self) -> tuple[str, ...]:
        return tuple(
            name for name in self.__struct_fields__ if name not in ("gpus", "tensor_parallel")
        )
