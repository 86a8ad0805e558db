"""What the scheduler knows between its calls: who waits, who runs, who holds which blocks."""

import bisect
from collections import deque
from dataclasses import dataclass

from pagetwin.engine.block_manager import BlockManager
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.policies import resolve_policy
from pagetwin.engine.queues import AdmissionQueue
from pagetwin.engine.sequence import Sequence, SequenceGroup, SequenceStatus
from pagetwin.engine.step import StepPlan
from pagetwin.engine.stopping import StopConditions


@dataclass(slots=True)
class Totals:
    """Counts since the start; see step.Counters."""

    prefix_queries: int = 0
    prefix_hit_tokens: int = 0
    partial_hits: int = 0
    preemptions_recompute: int = 0
    preemptions_swap: int = 0
    finished: int = 0
    aborts: int = 0


class SchedulerState:
    """The sequences and blocks that planning and closing a step both work on.

    Planning (engine/planning.py) moves sequences from the queues to `running` and back; closing
    (engine/closing.py) appends tokens and ends sequences. The state itself only keeps the two
    consistent: each live sequence stands in exactly one of `running`, `waiting`, `swapped`.
    """

    def __init__(self, cache: CacheConfig, config: SchedulerConfig) -> None:
        self.cache = cache
        self.config = config
        self.policy = resolve_policy(config.policy)
        self.is_fcfs = config.policy == "fcfs"
        self.blocks = BlockManager(cache)
        self.stop_conditions = StopConditions(cache, config)
        self.groups: dict[str, SequenceGroup] = {}
        self.sequences: dict[str, Sequence] = {}
        self.waiting = AdmissionQueue(returning_first=self.is_fcfs)
        self.swapped = AdmissionQueue(returning_first=self.is_fcfs)
        self.running: list[Sequence] = []
        self.to_preempt: set[str] = set()
        """Requests for which a forced preemption is due (P3.5)."""
        self.num_running = 0
        """Running sequences as counted towards max_num_seqs."""
        self.in_flight: deque[StepPlan] = deque()
        self.deferred: dict[str, Sequence] = {}
        """Ended sequences whose blocks a step in flight still uses (P5.3c)."""
        self.copy_sources: dict[int, list[int]] = {}
        """Pinned sources of partial hits, by the step that copies them (P2.4a)."""
        self.dropped: set[str] = set()
        """Rows that the next plan tells the executor to forget."""
        self.ended_requests: set[str] = set()
        """Requests that the next plan tells the executor to forget."""
        self.totals = Totals()
        self.next_step = 0

    def start_running(self, seq: Sequence) -> None:
        """Puts a sequence that was admitted in its place among the running ones (P2.3)."""
        seq.move_to(SequenceStatus.RUNNING)
        self.num_running += seq.weight
        if self.is_fcfs:
            self.running.append(seq)
        else:
            bisect.insort(self.running, seq, key=lambda other: other.order_key)

    def drop_row(self, seq: Sequence) -> None:
        """Has the executor forget its row of the sequence, if it has one."""
        if seq.has_row:
            self.dropped.add(seq.seq_id)
            seq.has_row = False

    def leave_line(self, seq: Sequence) -> None:
        """Takes a live sequence out of the list or queue that it stands in."""
        match seq.status:
            case SequenceStatus.RUNNING:
                self.running.remove(seq)
            case SequenceStatus.SWAPPED:
                self.swapped.remove(seq)
            case _:
                self.waiting.remove(seq)

    def end(self, seq: Sequence, status: SequenceStatus) -> None:
        """Ends a live sequence and frees its blocks, now or when a step in flight returns.

        The caller takes it out of the line that it stands in.
        """
        if seq.status is SequenceStatus.RUNNING:
            self.num_running -= seq.weight
        seq.move_to(status)
        del self.sequences[seq.seq_id]
        self.drop_row(seq)
        if self.in_flight and seq.last_step >= self.in_flight[0].step:
            self.deferred[seq.seq_id] = seq
        else:
            self.blocks.free(seq.seq_id)
        self.blocks.free_host(seq.seq_id)

    def forget_if_ended(self, group: SequenceGroup) -> None:
        """Forgets a group of which no sequence lives any more."""
        if all(seq.status.is_finished for seq in group.sequences):
            del self.groups[group.request.request_id]
            self.to_preempt.discard(group.request.request_id)
            if group.introduced:
                self.ended_requests.add(group.request.request_id)

    def is_id_in_use(self, request_id: str) -> bool:
        return request_id in self.groups or any(
            seq.group.request.request_id == request_id for seq in self.deferred.values()
        )
