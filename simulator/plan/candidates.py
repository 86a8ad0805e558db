"""What may be bought and set: GPUs, how a model is spread over them, and the engine's knobs."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.deployment import Deployment
from pagetwin.simulator.cluster.description import RouterName
from pagetwin.simulator.costs.datasheets import gpu_named


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas of a model, and how requests are sent to them."""

    deployment: Deployment
    router: RouterName = "least_outstanding"

    @property
    def num_replicas(self) -> int:
        return self.deployment.replicas

    @property
    def gpus_per_replica(self) -> int:
        return self.deployment.tp * self.deployment.pp

    @property
    def num_gpus(self) -> int:
        return self.num_replicas * self.gpus_per_replica

    @property
    def price_per_h(self) -> float:
        """US dollars, by the deployment's price or the datasheet's guess."""
        price = self.deployment.price
        return self.num_gpus * (
            gpu_named(self.deployment.gpu).price_per_h if price is None else price
        )

    def times(self, num_replicas: int) -> "Candidate":
        """The same with so many replicas."""
        return self.changed("replicas", num_replicas)

    def changed(self, knob: str, value: Any) -> "Candidate":
        """The same with another value of a knob of the deployment, or another router."""
        if knob == "router":
            return msgspec.structs.replace(self, router=value)
        deployment = msgspec.structs.replace(self.deployment, **{knob: value})
        return msgspec.structs.replace(self, deployment=deployment)

    def value(self, knob: str) -> Any:
        return self.router if knob == "router" else getattr(self.deployment, knob)

    def __str__(self) -> str:
        default = Candidate(deployment=Deployment(gpu=self.deployment.gpu))
        spread = "" if self.gpus_per_replica == 1 else f" tp={self.deployment.tp}"
        changed = [
            f" {knob}={self.value(knob)}"
            for knob in KNOBS
            if self.value(knob) != default.value(knob)
        ]
        gpu = gpu_named(self.deployment.gpu).name
        return f"{self.num_replicas} x {gpu}{spread}{''.join(changed)}"


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What the search may choose from; the first of each is where it starts.

    Raises ConfigError on an empty list or an unknown GPU.
    """

    gpus: tuple[str, ...]
    tp: tuple[int, ...] = (1, 2, 4, 8)
    max_num_seqs: tuple[int, ...] = (256, 64, 128, 512)
    max_num_batched_tokens: tuple[int, ...] = (8192, 2048, 16384)
    long_prefill_token_threshold: tuple[int, ...] = (0, 512, 2048)
    kv_dtype: tuple[str | None, ...] = (None,)
    """None: the model's."""
    prefix_caching: tuple[bool, ...] = (True, False)
    router: tuple[RouterName, ...] = (
        "least_outstanding",
        "least_kv",
        "prefix_affinity",
        "power_of_two",
    )

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name):
                raise ConfigError(f"plan: {name} has nothing to choose from; give at least one")
        for gpu in self.gpus:
            gpu_named(gpu)

    def hardware(self, base: Deployment, prices: dict[str, float]) -> Iterator[Candidate]:
        """One replica of each GPU and spread, with the knobs that the search starts from.

        `prices` are US dollars per GPU-hour by the GPU's name.
        """
        for gpu, tp in product(self.gpus, self.tp):
            name = gpu_named(gpu).name
            candidate = Candidate(
                deployment=msgspec.structs.replace(
                    base, gpu=name, tp=tp, replicas=1, price=prices.get(name, base.price)
                )
            )
            for knob in KNOBS:
                candidate = candidate.changed(knob, getattr(self, knob)[0])
            yield candidate

    def changes(self, candidate: Candidate) -> Iterator[Candidate]:
        """The candidate with one knob set to another choice, knob by knob."""
        for knob in KNOBS:
            for value in getattr(self, knob):
                if value != candidate.value(knob):
                    yield candidate.changed(knob, value)


KNOBS = tuple(name for name in Choices.__struct_fields__ if name not in ("gpus", "tp"))
"""What is changed one at a time once the GPUs are chosen."""
