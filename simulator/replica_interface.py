"""Decides what a cluster may ask of a replica, whether it steps or jumps."""

from typing import Protocol

import msgspec

from pagetwin.engine.request import Request


class ReplicaLoad(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How busy a replica is, as its router may know: between two steps nothing of it changes
    but by submissions and aborts."""

    num_outstanding: int
    """Requests that were submitted and are not over."""
    num_waiting: int
    """Sequences that wait, swapped-out ones included."""
    num_running: int
    """As counted towards max_num_seqs."""
    num_queued_tokens: int
    """Prompt tokens of the requests that no step has had yet."""
    num_free_blocks: int
    num_usable_blocks: int

    @property
    def kv_use(self) -> float:
        """Share of the pool that sequences hold, 0 to 1."""
        return 1 - self.num_free_blocks / self.num_usable_blocks


class SimulatedReplica(Protocol):
    """A replica that lives in a SimPy environment whose time is in ticks.

    What it was told to report (`on_first_token(request_id, tick)`, `on_finish(timings)`) it
    reports at that tick, from inside the environment; the callee may submit and abort.
    """

    def submit(self, request: Request) -> bool:
        """Adds a request now, between plans (P1.5); False if it is refused (P2.5)."""
        ...

    def abort(self, request_id: str) -> bool:
        """Ends a request now; False if it is unknown or over. `on_finish` is told."""
        ...

    def load(self) -> ReplicaLoad: ...

    def stop(self) -> tuple[Request, ...]:
        """The replica fails: it does nothing ever after, and its callbacks are silent.

        Returns the requests that it leaves unfinished, in the order of submission.
        """
        ...
