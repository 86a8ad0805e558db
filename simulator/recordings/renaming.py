"""Renames tokens so that they compress: sequences share the same prefixes as before, no others.

A scheduler asks of tokens only which sequences begin alike. In the tree of all sequences each
token becomes its number among its siblings, in order of appearance: where a sequence is alone,
all are 0.
"""

from collections.abc import Iterable

from pagetwin.engine.request import Request


class PrefixNames:
    """The tree, grown token by token. Node 0 is the empty prefix."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}
        self._names = [0]
        """Of each node."""
        self._num_children = [0]

    def follow(self, node: int, tokens: Iterable[int]) -> tuple[int, list[int]]:
        """Where the tokens lead from a node, and their names."""
        names = []
        for token in tokens:
            key = (node, token)
            child = self._nodes.get(key)
            if child is None:
                child = self._nodes[key] = len(self._names)
                self._names.append(self._num_children[node])
                self._num_children[node] += 1
                self._num_children.append(0)
            names.append(self._names[child])
            node = child
        return node, names


def may_be_renamed(request: Request) -> bool:
    """Whether no token of its outputs means more than itself: nothing stops or forks it."""
    params = request.sampling_params
    return (
        request.num_samples == 1
        and request.beam_search is None
        and (params.ignore_eos or not request.eos_token_ids)
        and not params.stop
        and not params.stop_token_ids
    )
