"""Decides whether a request is turned away at the door, and predicts when it would be answered."""

from collections.abc import Sequence

from pagetwin.engine.request import Request
from pagetwin.simulator.clock import TICKS_PER_S, to_seconds
from pagetwin.simulator.cluster.description import Admission
from pagetwin.simulator.cluster.node import Node
from pagetwin.simulator.cost_model import CostModel, StepComposition
from pagetwin.simulator.step_clock import alone_ticks


def reason_to_reject(admission: Admission, num_outstanding: int, nodes: Sequence[Node]) -> str:
    """Why a cluster with so many requests takes no further one; "" if it does."""
    limit = admission.max_outstanding
    if limit is None or num_outstanding < limit * max(1, len(nodes)):
        return ""
    return f"{num_outstanding} requests are outstanding, at most {limit} for each replica"


def reason_to_reject_at(
    admission: Admission, request: Request, node: Node, cost_model: CostModel
) -> str:
    """Why the node that it would go to is too slow for it; "" if it is not."""
    limit_s = admission.max_ttft_s
    if limit_s is None:
        return ""
    ttft_s = to_seconds(predicted_ttft(request, node, cost_model))
    if ttft_s <= limit_s:
        return ""
    return f"its first token is predicted after {ttft_s:.3f} s, the limit is {limit_s} s"


def predicted_ttft(request: Request, node: Node, cost_model: CostModel) -> int:
    """Ticks to the first token, by what a gateway can know.

    The prompts that no step has had yet, and this one, fill steps of max_num_batched_tokens
    beside the running sequences; each costs what the cost model says. Where the pool is short of
    blocks, or sequences are at their limit, the truth is later.
    """
    load, scheduler = node.load(), node.pool.scheduler
    usable = load.num_usable_blocks
    held_tokens = (usable - load.num_free_blocks) * node.pool.cache.block_size
    room = max(1, scheduler.max_num_batched_tokens - load.num_running)
    left = load.num_queued_tokens + request.num_prompt_tokens
    full_steps, rest = divmod(left, room)
    ticks = full_steps * _step_ticks(cost_model, room, load.num_running, held_tokens)
    if rest:
        ticks += _step_ticks(cost_model, rest, load.num_running, held_tokens)
    return min(ticks, 10**9 * TICKS_PER_S)


def _step_ticks(cost_model: CostModel, num_tokens: int, num_running: int, num_context: int) -> int:
    return alone_ticks(
        cost_model,
        StepComposition(
            num_prefill_sequences=1,
            num_prefill_tokens=num_tokens,
            prefill_area=num_tokens * (num_tokens + 1) // 2,
            num_decode_sequences=num_running,
            num_context_tokens=num_context,
            num_samples=num_running + 1,
        ),
    )
