"""Each router keeps its defining law."""

from collections.abc import Callable, Sequence

import pytest

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.cluster.description import Policy, Pool
from pagetwin.simulator.cluster.node import Node, State
from pagetwin.simulator.cluster.prefix_index import CHUNK_TOKENS, PrefixIndex
from pagetwin.simulator.cluster.routers import MAX_IMBALANCE, ROUTERS
from pagetwin.simulator.process import ReplicaProcess
from pagetwin.simulator.replica_interface import ReplicaLoad
from pagetwin.simulator.workloads.workload import Arrival, plain_request


class IdleNode(Node):
    """A node that serves nobody, with books to be written by a test."""

    def __init__(self, number: int, pool: Pool, num_outstanding: int = 0) -> None:
        super().__init__(number, pool, self._no_replica)
        self.state = State.SERVING
        self.num_outstanding = num_outstanding
        self.num_free_blocks = self.num_usable_blocks = 10
        self.num_queued_tokens = 0

    def load(self) -> ReplicaLoad:
        return ReplicaLoad(
            num_outstanding=self.num_outstanding,
            num_waiting=0,
            num_running=0,
            num_queued_tokens=self.num_queued_tokens,
            num_free_blocks=self.num_free_blocks,
            num_usable_blocks=self.num_usable_blocks,
        )

    @staticmethod
    def _no_replica(node: Node) -> ReplicaProcess:
        raise AssertionError("nobody starts it")


MakeNodes = Callable[[Sequence[int]], list[IdleNode]]


@pytest.fixture
def make_nodes(make_pool: Callable[..., Pool]) -> MakeNodes:
    """Nodes with so many outstanding requests."""
    return lambda counts: [IdleNode(n, make_pool(), count) for n, count in enumerate(counts)]


def arrival(session: int = 0, prompt: tuple[int, ...] = (1, 2)) -> Arrival:
    return Arrival(plain_request(f"r{session}", prompt, 1, 0.0), session)


def test_round_robin_takes_turns_and_goes_on_behind_a_node_that_is_gone(
    make_nodes: MakeNodes,
) -> None:
    nodes, router = make_nodes([5, 0, 0]), ROUTERS["round_robin"](0)
    turns = [router.choose(arrival(), nodes).number for _ in range(4)]
    assert turns == [0, 1, 2, 0]
    without_one = [router.choose(arrival(), [nodes[0], nodes[2]]).number for _ in range(3)]
    assert without_one == [2, 0, 2]


def test_least_outstanding_takes_the_fewest_and_then_the_first(make_nodes: MakeNodes) -> None:
    router = ROUTERS["least_outstanding"](0)
    assert router.choose(arrival(), make_nodes([3, 1, 2, 1])).number == 1


def test_least_kv_counts_blocks_that_are_held_and_prompts_that_wait(make_nodes: MakeNodes) -> None:
    nodes, router = make_nodes([0, 9, 9]), ROUTERS["least_kv"](0)
    nodes[0].num_free_blocks, nodes[1].num_free_blocks, nodes[2].num_free_blocks = 2, 6, 8
    assert router.choose(arrival(), nodes).number == 2
    nodes[2].num_queued_tokens = 12  # three blocks of four tokens, so that five are spoken for
    assert router.choose(arrival(), nodes).number == 1


def test_the_worse_of_two_is_never_taken_and_every_other_node_is(make_nodes: MakeNodes) -> None:
    router = ROUTERS["power_of_two"](3)
    taken = {router.choose(arrival(), make_nodes([4, 9, 4, 4])).number for _ in range(200)}
    assert taken == {0, 2, 3}
    pairs = [router.choose(arrival(), make_nodes([0, 1, 2, 3])).number for _ in range(1200)]
    # Of six pairs, three hold node 0, two node 1 without it, one is left: 3 : 2 : 1 : 0.
    assert [pairs.count(n) / 1200 for n in range(4)] == pytest.approx(
        [1 / 2, 1 / 3, 1 / 6, 0], abs=0.05
    )
    assert router.choose(arrival(), make_nodes([7])).number == 0


def test_a_session_stays_and_only_those_of_a_lost_node_move(make_nodes: MakeNodes) -> None:
    nodes, router = make_nodes([0] * 4), ROUTERS["session_sticky"](0)
    homes = {s: router.choose(arrival(s), nodes).number for s in range(400)}
    assert homes == {s: router.choose(arrival(s), nodes).number for s in reversed(range(400))}
    assert all(60 < list(homes.values()).count(number) < 140 for number in range(4))
    after = {s: router.choose(arrival(s), nodes[:2] + nodes[3:]).number for s in range(400)}
    assert {s for s in homes if homes[s] != after[s]} == {s for s in homes if homes[s] == 2}


def prompt(*chunks: int) -> tuple[int, ...]:
    """Chunks of equal numbers are equal."""
    return tuple(token for chunk in chunks for token in [chunk] * CHUNK_TOKENS)


def test_prefix_affinity_goes_where_the_longest_prefix_went(make_nodes: MakeNodes) -> None:
    nodes, router = make_nodes([0, 1, 2]), ROUTERS["prefix_affinity"](0)
    assert router.choose(arrival(prompt=prompt(1, 2)), nodes).number == 0
    nodes[0].num_outstanding = 2
    assert router.choose(arrival(prompt=prompt(7, 8)), nodes).number == 1
    assert router.choose(arrival(prompt=prompt(1, 3)), nodes).number == 0
    assert router.choose(arrival(prompt=prompt(7, 8, 9)), nodes).number == 1
    # A prefix that begins in the middle is none.
    nodes[1].num_outstanding = 9
    assert router.choose(arrival(prompt=prompt(8, 9)), nodes).number == 0


def test_prefix_affinity_does_not_overload_nor_trust_a_memory_that_is_lost(
    make_nodes: MakeNodes,
) -> None:
    nodes, router = make_nodes([0, 0]), ROUTERS["prefix_affinity"](0)
    assert router.choose(arrival(prompt=prompt(1)), nodes).number == 0
    nodes[0].num_outstanding = MAX_IMBALANCE
    assert router.choose(arrival(prompt=prompt(1)), nodes).number == 0
    nodes[0].num_outstanding += 1
    assert router.choose(arrival(prompt=prompt(1)), nodes).number == 1
    nodes[0].num_outstanding, nodes[1].num_outstanding = 0, 1
    nodes[1].generation += 1  # only node 0 still has it
    assert router.choose(arrival(prompt=prompt(1)), nodes).number == 0


def test_the_index_forgets_the_prefix_that_was_used_longest_ago() -> None:
    index, places = PrefixIndex(max_chunks=3), {0: 0}
    index.note(prompt(1, 2), 0, 0)
    index.note(prompt(3), 0, 0)
    index.note(prompt(1), 0, 0)
    index.note(prompt(4), 0, 0)
    assert index.matches(prompt(1, 2), places) == {0: 1}
    assert index.matches(prompt(3), places) == {0: 1}
    assert index.matches(prompt(1)[:-1], places) == {}


def test_a_router_that_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="router 'random' is unknown; use one of round_robin"):
        Policy(router="random")  # type: ignore[arg-type]
