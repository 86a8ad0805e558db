"""Decides which cached blocks are candidates for a partial hit: docs/policy.md P2.4a."""

from collections.abc import Iterable


class Branches:
    """The cached blocks by the branch of their key (`PrefixKey.branch`).

    Nearly every block is alone on its branch, and is not put into a list for that.
    """

    def __init__(self) -> None:
        self._first: dict[bytes, int] = {}
        self._others: dict[bytes, list[int]] = {}

    def add(self, branch: bytes, block_id: int) -> None:
        if self._first.setdefault(branch, block_id) != block_id:
            self._others.setdefault(branch, []).append(block_id)

    def remove(self, branch: bytes, block_id: int) -> None:
        others = self._others.get(branch)
        if others is None:
            del self._first[branch]
            return
        if self._first[branch] == block_id:
            self._first[branch] = others.pop()
        else:
            others.remove(block_id)
        if not others:
            del self._others[branch]

    def blocks(self, branch: bytes) -> list[int]:
        """Those on the branch, in id order."""
        if branch not in self._first:
            return []
        return sorted((self._first[branch], *self._others.get(branch, ())))

    def clear(self) -> None:
        self._first.clear()
        self._others.clear()

    def check_invariants(self, cached: Iterable[tuple[bytes, int]]) -> None:
        """Compares it with `cached`: (branch, block) of every block that has a key."""
        others = [(branch, block) for branch, blocks in self._others.items() for block in blocks]
        assert sorted([*self._first.items(), *others]) == sorted(cached), (
            "the index by branch differs from the keys"
        )
        assert all(self._others.values()), "a branch is kept for blocks that are gone"
