"""Decides what a counted replica is about to do, and how busy it is in mid-step; does nothing."""

from pagetwin.simulator.fast_forward.counted import CountedReplica
from pagetwin.simulator.replica_interface import ReplicaLoad


def next_change(counted: CountedReplica) -> int | None:
    """The tick, after `now`, at which a step ends that must not be passed by: it gives a
    first token, ends a sequence, lets somebody in, or is the last before blocks are short.

    `now` where they are short at once; None where nobody is there.
    """
    if counted.is_about_to_prefill():
        step = counted.plan_mixed()
        if step is None:
            return counted.now
        if step.prefills or not counted.batch.heap:
            return counted.now + counted.mixed_ticks(step)
        counted.may_admit = False
    batch = counted.batch
    if not batch.heap:
        return None
    num_steps, _ = counted.decode_steps(None, None)
    num_steps = batch.steps_without_shortage(num_steps, counted.pool.num_free())
    return counted.now + batch.duration(num_steps)


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
            step = counted.plan_mixed()
        num_free -= counted.batch.num_takers()
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
