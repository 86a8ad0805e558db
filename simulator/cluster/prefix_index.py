"""Decides what a gateway remembers of the prompts that it sent where.

It sees no replica's cache: it remembers, as real gateways do, which prefixes it sent to which
node lately, in chunks of tokens, and forgets the oldest.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping

CHUNK_TOKENS = 64
"""Prefixes are compared in steps of so many tokens."""
MAX_CHUNKS = 200_000
"""Remembered over all nodes; the least recently used is forgotten first."""


class PrefixIndex:
    def __init__(self, max_chunks: int = MAX_CHUNKS) -> None:
        self._max_chunks = max_chunks
        # By chained key of the chunk: the generation of each node that it was sent to.
        self._sent: OrderedDict[int, dict[int, int]] = OrderedDict()

    def matches(self, prompt: tuple[int, ...], places: Mapping[int, int]) -> dict[int, int]:
        """For each of the places (node and its generation) the leading chunks of the prompt that
        it was sent since it started; only those that have one."""
        found: dict[int, int] = {}
        for length, key in enumerate(_keys(prompt), start=1):
            sent = self._sent.get(key)
            if sent is None:
                break
            # A node that lacks a chunk has no use for those behind it.
            holders = [
                node
                for node, generation in places.items()
                if sent.get(node) == generation and found.get(node, 0) == length - 1
            ]
            if not holders:
                break
            found |= dict.fromkeys(holders, length)
        return found

    def note(self, prompt: tuple[int, ...], node: int, generation: int) -> None:
        """The prompt was sent to that node."""
        # The end first, so that it is also forgotten first: without a beginning it is of no use.
        for key in reversed(list(_keys(prompt))):
            self._sent.setdefault(key, {})[node] = generation
            self._sent.move_to_end(key)
        while len(self._sent) > self._max_chunks:
            self._sent.popitem(last=False)


def _keys(prompt: tuple[int, ...]) -> Iterator[int]:
    key = 0
    for end in range(CHUNK_TOKENS, len(prompt) + 1, CHUNK_TOKENS):
        # Tuples of integers hash to the same number in every process.
        key = hash((key, prompt[end - CHUNK_TOKENS : end]))
        yield key
