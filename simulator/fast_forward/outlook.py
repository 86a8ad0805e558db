"""Decides what a counted replica is about to do, and how busy it is in mid-step; alters nothing."""

from pagetwin.simulator.fast_forward.counted import CountedReplica
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.step_clock import alone_ticks


def next_change(counted: CountedReplica) -> int | None:
    """The tick, after `now`, at which a step ends that must not be passed by: it gives a
    first token, ends a sequence, lets somebody in, or is the last before blocks are short.

    `now` where they are short at once; None where nobody is there.
    """
    if counted.is_about_to_prefill():
        step = counted.plan_mixed()
        if step is None:
            return counted.now
        if step.num_chunk_tokens > 0 or step.admitted or not counted.decoding:
            counted.may_admit = True
            return counted.now + alone_ticks(counted.cost_model, counted.composition(step))
    if not counted.decoding:
        return None
    num_steps, _ = counted.decode_steps(None, None)
    num_steps = counted.steps_without_shortage(num_steps)
    base, slope, _ = counted.line
    grown = len(counted.decoding) * (num_steps * (num_steps - 1) // 2)
    context = num_steps * counted.num_context_tokens + grown
    return counted.now + num_steps * base + slope * context


def load_at(counted: CountedReplica, now: int) -> ReplicaLoad:
    """How busy it is at tick `now`, up to which it has advanced: the step under way is
    planned, not closed."""
    num_waiting = len(counted.waiting) + len(counted.late)
    num_running = len(counted.running)
    queued = [*counted.waiting, *counted.late]
    num_free = counted.pool.num_free()
    if counted.now < now and num_running + len(counted.waiting) > 0:
        step = None
        if counted.is_about_to_prefill():
            may_admit = counted.may_admit
            step = counted.plan_mixed()
            counted.may_admit = may_admit
        num_free -= len(counted.takers[counted.num_steps % counted.block_size])
        if step is not None:
            num_free -= step.num_chunk_blocks
            for admission in step.admitted:
                num_free -= admission.num_blocks
                queued.remove(admission.seq)
            num_waiting -= len(step.admitted)
            num_running += len(step.admitted)
    return ReplicaLoad(
        num_outstanding=len(counted.live),
        num_waiting=num_waiting,
        num_running=num_running,
        num_queued_tokens=sum(seq.num_prompt_tokens for seq in queued),
        num_free_blocks=num_free,
        num_usable_blocks=counted.cache.num_blocks - 1,
    )
