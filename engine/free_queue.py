"""The order in which free blocks are taken: a queue with O(1) removal from the middle."""

from collections.abc import Iterator


class FreeQueue:
    """Block ids in a doubly linked list laid out in two arrays.

    Takes from the front, puts at the back (docs/policy.md P4.1). `num_ids` is the size of the
    id space 0..num_ids-1; `first` is the smallest id that is free at the start, so that a pool
    with a null block starts at 1. Links live at index id + 1, with 0 as the sentinel.
    """

    __slots__ = ("_next", "_previous", "num_free")

    def __init__(self, num_ids: int, *, first: int = 0) -> None:
        self._next = [0] * (num_ids + 1)
        self._previous = [0] * (num_ids + 1)
        self.num_free = 0
        for block_id in range(first, num_ids):
            self.put(block_id)

    def take(self) -> int:
        """Removes and returns the front id; IndexError if there is none."""
        link = self._next[0]
        if link == 0:
            raise IndexError("take from an empty free queue")
        self.remove(link - 1)
        return link - 1

    def put(self, block_id: int) -> None:
        """Adds an id that is not in the queue at the back."""
        link = block_id + 1
        last = self._previous[0]
        self._next[last] = link
        self._previous[link] = last
        self._next[link] = 0
        self._previous[0] = link
        self.num_free += 1

    def remove(self, block_id: int) -> None:
        """Removes an id that is in the queue, wherever it stands."""
        link = block_id + 1
        before, after = self._previous[link], self._next[link]
        self._next[before] = after
        self._previous[after] = before
        self.num_free -= 1

    def __iter__(self) -> Iterator[int]:
        link = self._next[0]
        while link:
            yield link - 1
            link = self._next[link]

    def check_invariants(self) -> None:
        """Walks the links both ways; AssertionError if they or the count disagree."""
        forward = list(self)
        backward = []
        link = self._previous[0]
        while link:
            backward.append(link - 1)
            link = self._previous[link]
        assert forward == backward[::-1], f"links disagree: {forward} and {backward[::-1]}"
        assert len(set(forward)) == len(forward), f"a block stands twice in {forward}"
        assert len(forward) == self.num_free, (
            f"{len(forward)} in the queue, counted {self.num_free}"
        )
