"""Decides which replica a request goes to.

Each router is a pure function of what it has seen and of the nodes' books; ties go to the smaller
node number, so that equal runs route equally.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from pagetwin.simulator.cluster.node import Node
from pagetwin.simulator.cluster.prefix_index import PrefixIndex
from pagetwin.simulator.workloads.draws import Purpose, generator, one_by_one
from pagetwin.simulator.workloads.workload import Arrival

MAX_IMBALANCE = 8
"""Requests by which prefix affinity may overload a node against the least loaded one."""


class Router(Protocol):
    def choose(self, arrival: Arrival, nodes: Sequence[Node]) -> Node:
        """One of the nodes, of which there is at least one, in order of their numbers."""
        ...


class RoundRobin:
    """The next node after the one before, by number."""

    def __init__(self) -> None:
        self._latest = -1

    def choose(self, arrival: Arrival, nodes: Sequence[Node]) -> Node:
        node = next((node for node in nodes if node.number > self._latest), nodes[0])
        self._latest = node.number
        return node


class LeastOutstanding:
    """The fewest requests under way."""

    def choose(self, arrival: Arrival, nodes: Sequence[Node]) -> Node:
        return min(nodes, key=_outstanding)


class LeastKV:
    """The smallest share of the KV pool that sequences hold, or that waiting prompts will."""

    def choose(self, arrival: Arrival, nodes: Sequence[Node]) -> Node:
        return min(nodes, key=lambda node: (kv_demand(node), *_outstanding(node)))


class PowerOfTwo:
    """The fewer requests of two nodes drawn at random (Mitzenmacher, 2001)."""

    def __init__(self, seed: int) -> None:
        self._draws = one_by_one(generator(seed, Purpose.ROUTING).random)

    def choose(self, arrival: Arrival, nodes: Sequence[Node]) -> Node:
        # Both are drawn whatever there is to choose from, so that streams stay in step.
        first, second = next(self._draws), next(self._draws)
        if len(nodes) == 1:
            return nodes[0]
        one = int(first * len(nodes))
        other = int(second * (len(nodes) - 1))
        return min(nodes[one], nodes[other + (other >= one)], key=_outstanding)


class SessionSticky:
    """Always the same node for a session, by rendezvous hashing (Thaler and Ravishankar, 1998):
    where a node is gone, only its own sessions move, and they come back with it."""

    def choose(self, arrival: Arrival, nodes: Sequence[Node]) -> Node:
        return max(nodes, key=lambda node: (mixed(arrival.session, node.number), -node.number))


class PrefixAffinity:
    """The node that was sent the longest prefix of the prompt, unless it has `MAX_IMBALANCE`
    more requests than the least loaded one, which is then taken."""

    def __init__(self) -> None:
        self._index = PrefixIndex()

    def choose(self, arrival: Arrival, nodes: Sequence[Node]) -> Node:
        prompt = arrival.request.prompt_token_ids
        idlest = min(nodes, key=_outstanding)
        limit = idlest.num_outstanding + MAX_IMBALANCE
        open_to_it = {node.number: node for node in nodes if node.num_outstanding <= limit}
        places = {number: node.generation for number, node in open_to_it.items()}
        matches = self._index.matches(prompt, places)
        longest = max(matches.values(), default=0)
        chosen = idlest
        if longest > 0:
            best = [open_to_it[number] for number, match in matches.items() if match == longest]
            chosen = min(best, key=_outstanding)
        self._index.note(prompt, chosen.number, chosen.generation)
        return chosen


ROUTERS: dict[str, Callable[[int], Router]] = {
    "round_robin": lambda seed: RoundRobin(),
    "least_outstanding": lambda seed: LeastOutstanding(),
    "least_kv": lambda seed: LeastKV(),
    "prefix_affinity": lambda seed: PrefixAffinity(),
    "session_sticky": lambda seed: SessionSticky(),
    "power_of_two": PowerOfTwo,
}
"""By name, made from the seed."""


def kv_demand(node: Node) -> float:
    """Blocks that are held, or that prompts not yet begun need, over those that there are."""
    load = node.load()
    held = load.num_usable_blocks - load.num_free_blocks
    queued = load.num_queued_tokens / node.pool.cache.block_size
    return (held + queued) / load.num_usable_blocks


def mixed(session: int, number: int) -> int:
    """64 bits that look random in both arguments (SplitMix64's finaliser)."""
    x = (session * 0x9E3779B97F4A7C15 + number * 0xD1342543DE82EF95 + 1) & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def _outstanding(node: Node) -> tuple[int, int]:
    return node.num_outstanding, node.number
