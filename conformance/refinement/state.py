"""The state of an abstract engine that a foreign trace drives: who waits, runs, and holds what."""

from collections.abc import Iterator

import msgspec

from pagetwin.conformance.refinement.memory import ShadowMemory, TextNames
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.trace import HeaderRecord, PlanRecord, ResultRecord, SubmitRecord


class Follower(msgspec.Struct, gc=False):
    """One sequence as the trace tells it."""

    seq_id: str
    request: Request
    names: list[int]
    """Of its text, after each known token."""
    computed: int = 0
    runs: bool = False

    @property
    def num_known(self) -> int:
        return len(self.names)


class AbstractEngine:
    """Queues, tables and slots. Tables are taken as they are recorded, whatever made them so."""

    def __init__(self, header: HeaderRecord) -> None:
        self.block_size = header.cache.block_size
        self.limits = header.scheduler
        self.texts = TextNames()
        self.memory = ShadowMemory(self.block_size)
        self.live: dict[str, Follower] = {}
        self.over: set[str] = set()
        self.waiting: list[str] = []
        """In the order of an engine that serves first come, first served."""
        self.running: list[str] = []
        """In the order of admission."""
        self.tables: dict[str, tuple[int, ...]] = {}
        self.num_blocks: int | None = None
        """Blocks in all: those that were free before anything ran."""

    def submit(self, record: SubmitRecord) -> None:
        """Each sample is a sequence of its own, from the beginning."""
        request = record.request
        for index in range(request.num_samples):
            seq_id = sequence_id(request.request_id, index)
            names = self.texts.of(request.prompt_token_ids)
            self.live[seq_id] = Follower(seq_id, request, names)
            self.waiting.append(seq_id)
        if self.num_blocks is None:
            self.num_blocks = record.counters.num_free_blocks

    def preempt(self, record: PlanRecord) -> None:
        for one in record.plan.preempted:
            follower = self.live.get(one.seq_id)
            if follower is not None:
                follower.runs = False
                follower.computed = 0
                self.tables.pop(one.seq_id, None)
                if one.seq_id in self.running:
                    self.running.remove(one.seq_id)
                self.waiting.insert(0, one.seq_id)

    def move_blocks(self, record: PlanRecord) -> None:
        plan = record.plan
        for out in plan.swap_outs:
            self.memory.swap_out(*out)
        for back in plan.swap_ins:
            self.memory.swap_in(*back)
        for copy in plan.copies:
            self.memory.copy(*copy)

    def admit(self, seq_id: str) -> None:
        self.live[seq_id].runs = True
        if seq_id in self.waiting:
            self.waiting.remove(seq_id)
        if seq_id not in self.running:
            self.running.append(seq_id)

    def close(self, record: ResultRecord) -> None:
        for seq_id, token in record.sampled.items():
            follower = self.live.get(seq_id)
            if follower is not None:
                follower.names.append(self.texts.extend(follower.names[-1], token))
        for one in record.finished:
            self.end(one.seq_id)

    def abort(self, request_id: str) -> None:
        """Whatever of it still lives."""
        live = (one for one in self.live.values() if one.request.request_id == request_id)
        for follower in list(live):
            self.end(follower.seq_id)

    def end(self, seq_id: str) -> None:
        self.over.add(seq_id)
        self.live.pop(seq_id, None)
        self.tables.pop(seq_id, None)
        for queue in (self.waiting, self.running):
            if seq_id in queue:
                queue.remove(seq_id)

    def blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def holders(self, block: int) -> Iterator[str]:
        return (seq_id for seq_id, table in self.tables.items() if block in table)
