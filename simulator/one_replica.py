"""Decides how requests are run on one replica that is alone."""

from collections.abc import Iterable, Mapping

import simpy

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.step import Executor
from pagetwin.engine.trace import HeaderRecord, HistoryWriter
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.countable import can_count
from pagetwin.simulator.fast_forward.process import FastForwardProcess
from pagetwin.simulator.fast_forward.run import CountedRun
from pagetwin.simulator.occasions import feed, occasions
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica import Replica
from pagetwin.simulator.timekeeper import Finished
from pagetwin.simulator.timings import SimulationResult
from pagetwin.simulator.token_source import ScriptedTokens


def simulate_replica(
    requests: Iterable[Request],
    *,
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    cost_model: CostModel,
    tokens: Executor | None = None,
    aborts: Mapping[str, float] | None = None,
    history: HistoryWriter | None = None,
    on_finish: Finished | None = None,
    fast_forward: bool = False,
) -> SimulationResult:
    """Runs the requests to their end on one replica.

    Requests are drawn when their time has come; they arrive at their `arrival_s`, which may not
    be negative or go back (ConfigError). `aborts` maps request ids to virtual seconds; at one
    instant an arrival comes before an abort, and both before the end of a step that began
    earlier. `tokens` is `ScriptedTokens` if not given. `history` gets the records, and stays
    open. With `on_finish`, timings go there as requests end, and are not kept.

    With `fast_forward`, where the tokens are scripted, the run is counted as long as that is
    exact and no history is asked for (`fast_forward.run`), and after that the stretches in which
    requests only decode are jumped over (`fast_forward.process`). Nothing else differs.
    """
    due = occasions(requests, aborts or {})
    if tokens is None:
        tokens = ScriptedTokens(max_model_len=scheduler.max_model_len)
    jumps = fast_forward and isinstance(tokens, ScriptedTokens)
    if jumps and history is None and can_count(cache, scheduler):
        assert isinstance(tokens, ScriptedTokens)
        return CountedRun(cache, scheduler, cost_model, tokens, on_finish).run(due)
    env = simpy.Environment()
    if history is not None:
        history.write(HeaderRecord(cache=cache, scheduler=scheduler, engine="pagetwin.simulator"))
    twin = Replica(cache, scheduler)
    replica: ReplicaProcess
    if jumps:
        assert isinstance(tokens, ScriptedTokens)
        replica = FastForwardProcess(env, twin, cost_model, tokens, history, on_finish=on_finish)
    else:
        replica = ReplicaProcess(env, twin, cost_model, tokens, history, on_finish=on_finish)
    env.process(feed(env, replica, due))
    env.run()
    return replica.times.result(twin.counters())
