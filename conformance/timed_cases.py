"""Timed runs at random: small pools, related prompts, and every feature of the policy."""

import random
from dataclasses import dataclass, field, replace

import msgspec

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.simulator.cost_model import CostModel, LinearCostModel
from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.step_costs import (
    CalibratedCosts,
    ContextCosts,
    EagerCosts,
    GraphCosts,
    HostCosts,
    HostLine,
    StepCosts,
)
from pagetwin.simulator.token_source import ScriptedTokens, TokenScript, hashed_token

STEP_S = 0.01
EOS = 7


@dataclass
class TimedCase:
    """One run: what is served, with which knobs, and when it is aborted."""

    cache: CacheConfig
    scheduler: SchedulerConfig
    cost_model: CostModel
    requests: list[Request]
    aborts: dict[str, float] = field(default_factory=dict)
    script: TokenScript = hashed_token

    def tokens(self) -> ScriptedTokens:
        return ScriptedTokens(self.script, max_model_len=self.scheduler.max_model_len)


def make_plain_case(seed: int) -> TimedCase:
    """A run of that seed as servers mostly have them: first come, first served, synchronous,
    contents that rarely meet; now and then blocks run short, or something rarer comes."""
    case = make_case(seed)
    rng = random.Random(seed)
    rare = rng.choice((0.0, 0.0, 0.05))
    requests = [
        request
        if rng.random() < rare
        else msgspec.structs.replace(
            request,
            sampling_params=msgspec.structs.replace(request.sampling_params, n=1),
            beam_search=None,
            cache_salt=request.request_id,
        )
        for request in case.requests
    ]
    more = rng.choice((1, 2, 4))
    return replace(
        case,
        cache=msgspec.structs.replace(
            case.cache, num_blocks=case.cache.num_blocks * more, sliding_window=0
        ),
        scheduler=msgspec.structs.replace(
            case.scheduler, policy="fcfs", async_scheduling=False, long_prefill_token_threshold=0
        ),
        requests=requests,
        aborts=case.aborts if rng.random() < 0.2 else {},
    )


def make_case(seed: int) -> TimedCase:
    """The run of that seed. Half of the pools are short, half of the loads leave queues."""
    rng = random.Random(seed)
    block_size = rng.choice((1, 2, 4, 4, 16))
    caching = rng.random() < 0.6
    num_blocks = rng.choice((10, 24, 60, 400)) * (2 if block_size < 4 else 1)
    room = (num_blocks - 1) * block_size
    cache = CacheConfig(
        num_blocks=num_blocks,
        block_size=block_size,
        num_host_blocks=rng.choice((0, 4, 60)),
        enable_prefix_caching=caching,
        enable_partial_hits=caching and rng.random() < 0.6,
        watermark_blocks=rng.choice((0, 0, 1)),
        sliding_window=rng.choice((0, 0, 0, 0, 1, block_size, 2 * block_size + 1)),
    )
    chunked = rng.random() < 0.8
    max_model_len = max(2, rng.choice((room, room // 2 + 1, min(room + 3, 90))))
    max_num_seqs = rng.choice((1, 2, 4, 8, 16))
    budget = max(max_num_seqs, rng.choice((max_num_seqs, 2 * block_size + 3, 40)))
    scheduler = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget if chunked else max(budget, max_model_len),
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=(
            min(max_model_len, rng.choice((0, 0, 1, 5))) if chunked else 0
        ),
        policy=rng.choice(("fcfs", "fcfs", "priority")),
        preemption_mode=rng.choice(("recompute", "swap")),
        num_lookahead_slots=rng.choice((0, 0, 0, 1, block_size)) if room > block_size else 0,
        async_scheduling=rng.random() < 0.4,
        wait_for_prefix=rng.random() < 0.5,
    )
    requests = _requests(rng, cache, scheduler)
    last_s = requests[-1].arrival_s
    return TimedCase(
        cache=cache,
        scheduler=scheduler,
        cost_model=_linear(rng) if seed % 2 else _calibrated(seed, max_num_seqs),
        requests=requests,
        aborts={
            request.request_id: request.arrival_s + rng.choice((0.0, rng.random(), last_s))
            for request in requests
            if rng.random() < 0.1
        },
        script=_script(rng.choice((16, 200))),
    )


def _linear(rng: random.Random) -> CostModel:
    return LinearCostModel(
        constant_s=STEP_S,
        per_prefill_token_s=rng.choice((0.0, 1e-4)),
        per_decode_sequence_s=rng.choice((0.0, 1e-5)),
        per_context_token_s=rng.choice((0.0, 3e-6)),
    )


def _calibrated(seed: int, max_num_seqs: int) -> CostModel:
    """Costs as they are fitted: lines that bend, a host that may be behind, keys and values that
    are read once for several sequences."""
    rng = random.Random(f"costs {seed}")
    products = Curve(knots=(1, 4, 16), seconds=(STEP_S, 0.8 * STEP_S, 1.5 * STEP_S))
    graph = GraphCosts(products=products)
    eager = EagerCosts(
        products=products, per_pair_s=1e-6, per_chunk_s=1e-4, per_sample_s=1e-5, per_context_s=1e-6
    )
    slow_host = HostCosts(
        before=HostLine(constant_s=rng.choice((1e-3, 4e-3)), per_decode_s=1e-5),
        launch_s=rng.choice((0.0, 1e-3, 0.9 * STEP_S, 1.2 * STEP_S)),
        launches_s=rng.choice(((), (1e-3, 0.7 * STEP_S, 1.3 * STEP_S))),
        after=HostLine(constant_s=1e-4, per_prefill_token_s=1e-6),
    )
    costs = StepCosts(
        context=ContextCosts(
            per_token_s=rng.choice((0.0, 3e-6, 3e-5)),
            repeated_share=rng.choice((0.0, 0.9, 1.0)),
            per_position_s=rng.choice((0.0, 1e-4)),
            run=rng.choice((4, 32)),
            num_idle=rng.choice((1, 8)),
            tile=rng.choice((0, 4, 16)),
        ),
        graph=rng.choice((graph, graph, None)),
        eager=eager,
        graph_host=rng.choice((HostCosts(), slow_host)),
        eager_host=slow_host,
    )
    return CalibratedCosts(costs, max_num_seqs=rng.choice((2, max_num_seqs)))


def _script(count: int) -> TokenScript:
    """So few different tokens that stop ids are met."""
    return lambda request, sample, position: hashed_token(request, sample, position) % count


def _requests(rng: random.Random, cache: CacheConfig, scheduler: SchedulerConfig) -> list[Request]:
    """Arrivals by chance, now and then on the same tick, or on a step's edge."""
    gap_s = STEP_S * rng.choice((0.5, 8, 40))
    longest = min(scheduler.max_model_len, 80)
    made: list[Request] = []
    now_s = 0.0
    for number in range(rng.randint(2, 14)):
        if rng.random() < 0.8:
            now_s += rng.choice((rng.expovariate(1 / gap_s), round(gap_s / STEP_S) * STEP_S))
        prompt = _prompt(rng, cache.block_size, longest, made)
        is_beam = rng.random() < 0.06
        samples = rng.choice((1, 1, 1, 1, 2, 3))
        max_tokens = rng.choice((1, 3, rng.randint(1, 60), rng.randint(1, 60), None))
        made.append(
            Request(
                request_id=f"r{rng.randint(0, 99):02}-{number}",
                prompt_token_ids=prompt,
                sampling_params=SamplingParams(
                    n=1 if is_beam else samples,
                    max_tokens=4 if is_beam else max_tokens,
                    min_tokens=0 if is_beam else min(rng.choice((0, 0, 5)), max_tokens or 5),
                    ignore_eos=rng.random() < 0.7,
                    stop_token_ids=(3,) if rng.random() < 0.15 else (),
                    prompt_logprobs=1 if rng.random() < 0.05 else None,
                ),
                beam_search=BeamSearchParams(beam_width=2) if is_beam else None,
                arrival_s=now_s,
                priority=rng.randint(0, 2),
                eos_token_ids=(EOS,),
                cache_salt=rng.choice((None, None, None, "a")),
            )
        )
    return made


def _prompt(
    rng: random.Random, block_size: int, longest: int, made: list[Request]
) -> tuple[int, ...]:
    length = rng.choice((1, block_size, rng.randint(1, longest), rng.randint(1, longest)))
    own = tuple(rng.randrange(50) for _ in range(length))
    if not made or rng.random() < 0.5:
        return own
    other = rng.choice(made).prompt_token_ids
    return (*other[: rng.randint(1, len(other))], *own)[:longest]
