"""Decides how a cluster and its policy are written down: frozen data, checked when made."""

import math
from typing import Any, Literal, get_args

import msgspec

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cost_model import CostModel

Role = Literal["serve", "prefill", "decode"]
RouterName = Literal[
    "round_robin",
    "least_outstanding",
    "least_kv",
    "prefix_affinity",
    "session_sticky",
    "power_of_two",
]


def _at_least_zero(what: str, value: Any) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{what}={value!r} is not a number from 0 upwards")


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas that are alike. Pools of one role may differ in everything else."""

    cache: CacheConfig
    scheduler: SchedulerConfig
    name: str = "replicas"
    num_replicas: int = 1
    role: Role = "serve"
    """`serve` does all of a request. `prefill` computes prompts and first tokens, and hands the
    K/V to a replica that does `decode`."""
    cost_model: CostModel | None = None
    """None: the one given to `simulate`."""
    num_gpus: int = 1
    """Of one replica."""
    price_per_gpu_h: float = 0.0
    power_per_gpu_w: float = 0.0
    """Under load; see `results.bill`."""

    def __post_init__(self) -> None:
        if self.num_replicas < 1:
            raise ConfigError(f"pool {self.name!r}: num_replicas={self.num_replicas} is below 1")
        if self.num_gpus < 1:
            raise ConfigError(f"pool {self.name!r}: num_gpus={self.num_gpus} is below 1")
        for name in ("price_per_gpu_h", "power_per_gpu_w"):
            _at_least_zero(f"pool {self.name!r}: {name}", getattr(self, name))


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that fails at a given time."""

    node: int
    """Replicas are numbered from 0, pool by pool."""
    at_s: float
    duration_s: float | None = None
    """Until it is back, start-up included; None: it never is."""

    def __post_init__(self) -> None:
        if self.node < 0:
            raise ConfigError(f"outage of node {self.node}; nodes are numbered from 0")
        _at_least_zero(f"outage of node {self.node}: at_s", self.at_s)
        if self.duration_s is not None:
            _at_least_zero(f"outage of node {self.node}: duration_s", self.duration_s)


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas fail and come back empty; what they had under way is served again from its start."""

    mtbf_s: float | None = None
    """Mean time between failures of one replica, exponential; None: only the outages."""
    repair_s: float = 60.0
    """Mean time until it is back, exponential, start-up included."""
    outages: tuple[Outage, ...] = ()
    max_attempts: int = 3
    """A request whose replica fails for the so-manieth time is lost."""

    def __post_init__(self) -> None:
        if self.mtbf_s is not None and not (math.isfinite(self.mtbf_s) and self.mtbf_s > 0):
            raise ConfigError(f"mtbf_s={self.mtbf_s!r} is not a positive time; use None for none")
        _at_least_zero("repair_s", self.repair_s)
        if self.max_attempts < 1:
            raise ConfigError(f"max_attempts={self.max_attempts} is below 1; 1 is no second try")


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What carries K/V from a prefill replica: one transfer after the other, first come first."""

    bytes_per_s: float
    bytes_per_token: int
    """K/V of one token, over all layers and GPUs of a replica."""
    latency_s: float = 1e-3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0):
            raise ConfigError(f"link.bytes_per_s={self.bytes_per_s!r} is not a positive number")
        if self.bytes_per_token < 0:
            raise ConfigError(f"link.bytes_per_token={self.bytes_per_token} is negative")
        _at_least_zero("link.latency_s", self.latency_s)


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas, what connects them, and how they fail."""

    pools: tuple[Pool, ...]
    failures: Failures = Failures()
    link: Link | None = None
    """Needed where there are prefill pools."""

    def __post_init__(self) -> None:
        roles = {pool.role for pool in self.pools}
        names = [pool.name for pool in self.pools]
        if not self.pools:
            raise ConfigError("a cluster has at least one pool of replicas")
        if len(set(names)) < len(names):
            raise ConfigError(f"pools named {', '.join(names)}; give each a name of its own")
        if "serve" in roles and len(roles) > 1:
            raise ConfigError(
                f"pools of roles {', '.join(sorted(roles))}: either all serve, or some prefill and "
                "the others decode"
            )
        if roles in ({"prefill"}, {"decode"}):
            raise ConfigError(
                f"pools of role {roles.pop()} alone; prefill and decode need each other"
            )
        if "prefill" in roles and self.link is None:
            raise ConfigError("prefill and decode need a link; say how fast K/V goes over")
        for outage in self.failures.outages:
            if outage.node >= self.num_nodes:
                raise ConfigError(
                    f"outage of node {outage.node}; there are {self.num_nodes}, numbered from 0"
                )

    @property
    def num_nodes(self) -> int:
        return sum(pool.num_replicas for pool in self.pools)

    @property
    def entry_role(self) -> Role:
        """Of the replicas that requests go to first."""
        return "prefill" if any(pool.role == "prefill" for pool in self.pools) else "serve"


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """When a request is turned away at the door; None: never for that reason."""

    max_outstanding: int | None = None
    """Requests in the cluster, for each replica that could take one."""
    max_ttft_s: float | None = None
    """Predicted time to first token on the replica that it would go to."""

    def __post_init__(self) -> None:
        if self.max_outstanding is not None and self.max_outstanding < 1:
            raise ConfigError(f"max_outstanding={self.max_outstanding} is below 1; nobody gets in")
        if self.max_ttft_s is not None and not self.max_ttft_s > 0:
            raise ConfigError(f"max_ttft_s={self.max_ttft_s!r} is not a positive time")


class Autoscaling(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas of one pool run: enough that each has at most `target` requests."""

    pool: str = "replicas"
    min_replicas: int = 1
    target: float
    """Outstanding requests for each replica."""
    interval_s: float = 10.0
    """Between two looks."""
    cold_start_s: float = 60.0
    """From the decision until a replica serves; it is paid for from the decision on."""
    cooldown_s: float = 60.0
    """It takes so long of too many replicas before one is let go, when it has no request left."""

    def __post_init__(self) -> None:
        if self.min_replicas < 1:
            raise ConfigError(f"min_replicas={self.min_replicas} is below 1; nobody would serve")
        for name in ("target", "interval_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"autoscaling.{name}={value!r} is not a positive number")
        for name in ("cold_start_s", "cooldown_s"):
            _at_least_zero(f"autoscaling.{name}", getattr(self, name))


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway decides."""

    router: RouterName = "least_outstanding"
    admission: Admission = Admission()
    autoscaling: Autoscaling | None = None

    def __post_init__(self) -> None:
        names = get_args(RouterName)
        if self.router not in names:
            raise ConfigError(f"router {self.router!r} is unknown; use one of {', '.join(names)}")

    def check_against(self, cluster: Cluster) -> None:
        """Raises ConfigError if the policy is not one for the cluster."""
        scaling = self.autoscaling
        if scaling is None:
            return
        sizes = {pool.name: pool.num_replicas for pool in cluster.pools}
        if scaling.pool not in sizes:
            raise ConfigError(
                f"autoscaling of pool {scaling.pool!r}; the cluster has {', '.join(sizes)}"
            )
        if scaling.min_replicas > sizes[scaling.pool]:
            raise ConfigError(
                f"autoscaling.min_replicas={scaling.min_replicas} is above the "
                f"{sizes[scaling.pool]} replicas of pool {scaling.pool!r}"
            )
