"""`simulate`: a workload on a cluster, under a policy, in virtual time.

from pagetwin.simulator.simulate import simulate

result = simulate("poisson:rate=8,input=512,output=128,requests=2000", pool, cost_model=costs)
result.requests["ttft_s"]        # a numpy array
"""

from collections.abc import Iterable
from pathlib import Path

from pagetwin.engine.request import Request
from pagetwin.simulator.cluster.description import Cluster, Policy, Pool
from pagetwin.simulator.cluster.run import ClusterRun
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.results.result import Result
from pagetwin.simulator.workloads.spec import parse_workload
from pagetwin.simulator.workloads.workload import Listed, Workload

NO_POLICY = Policy()


def simulate(
    workload: Workload | Iterable[Request] | str,
    cluster: Cluster | Pool,
    policy: Policy = NO_POLICY,
    cost_model: CostModel | None = None,
    *,
    seed: int = 0,
    fast_forward: bool = True,
    record: Path | None = None,
    skip_unfit: bool = False,
) -> Result:
    """Serves the workload to its end.

    `workload` may be a spec (`workloads.spec`) or requests sorted by arrival. Pools without a cost
    model of their own take `cost_model`. Equal arguments give equal results; `fast_forward` jumps
    over steps that decide nothing. `record` is a folder that gets the history of each replica,
    `replica-NODE.jsonl` (after a failure, `replica-NODE.1.jsonl`).

    Raises ConfigError for a pool without costs, an empty workload or arrivals that go back;
    RequestError for a request that no replica can ever serve, unless `skip_unfit` leaves it out as
    refused.
    """
    if isinstance(workload, str):
        workload = parse_workload(workload)
    elif isinstance(workload, Iterable):
        workload = Listed(workload)
    run = ClusterRun(
        Cluster(pools=(cluster,)) if isinstance(cluster, Pool) else cluster,
        policy,
        cost_model,
        workload.begin(seed),
        seed=seed,
        fast_forward=fast_forward,
        record=record,
        skip_unfit=skip_unfit,
    )
    return run.result()
