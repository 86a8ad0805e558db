"""Shadows of the KV memory: what each slot holds, and which blocks the prefix cache knows.

A slot's content is the exact chain (salt, adapter, media, all tokens up to its position) of
whoever wrote it, interned as a number, so that equal content is equal numbers and nothing else
is. The cache shadow keeps docs/policy.md P4.6 with whole chains instead of hashes.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pagetwin.conformance.facts import LedgerSequence, ResultFacts, Row
from pagetwin.engine.request import Request
from pagetwin.engine.step import ScheduledSequence

UNKNOWN = -1
"""Content of a slot that nobody wrote, or wrote for a sequence that had ended."""


class Chains:
    """Numbers for token chains, equal exactly where the whole chains are."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._known: dict[str, tuple[LedgerSequence, list[int]]] = {}

    def intern(self, *parts: Hashable) -> int:
        return self._numbers.setdefault(parts, len(self._numbers))

    def of(self, sequence: LedgerSequence) -> list[int]:
        """The chain number at each of the sequence's known positions."""
        owner, nodes = self._known.get(sequence.seq_id, (sequence, []))
        if owner is not sequence:
            nodes = []
        self._known[sequence.seq_id] = (sequence, nodes)
        request = sequence.request
        for position in range(len(nodes), len(sequence.tokens)):
            parent = nodes[-1] if nodes else self.intern("root", *_identity(request))
            token = sequence.tokens[position]
            nodes.append(self.intern(parent, token, _media_at(request, position)))
        return nodes


class SlotShadow:
    """Content of every device and host block, as the steps write, copy and swap it."""

    def __init__(self, block_size: int) -> None:
        self.chains = Chains()
        self._block_size = block_size
        self._device: dict[int, list[int]] = {}
        self._host: dict[int, list[int]] = {}

    def execute(self, facts: ResultFacts) -> None:
        """Carries out a step in the order of docs/policy.md P4.5."""
        for source, destination in facts.plan.swap_outs:
            self._host[destination] = list(self._content(self._device, source))
        for source, destination in facts.plan.swap_ins:
            self._device[destination] = list(self._content(self._host, source))
        for source, destination in facts.plan.copies:
            self._device[destination] = list(self._content(self._device, source))
        for row in facts.rows:
            self._write(row)

    def wrong_position(self, row: Row) -> int | None:
        """First position that the row reads and that holds something else than its own token."""
        nodes = self.chains.of(row.sequence)
        size = self._block_size
        end = row.end
        for index in range(-(-end // size)):
            block = row.table[index] if index < len(row.table) else 0
            expected = nodes[index * size : min(end, (index + 1) * size)]
            if block == 0 and index < len(row.table):
                continue
            content = self._content(self._device, block)[: len(expected)]
            if content != expected:
                offset = next(i for i, node in enumerate(expected) if content[i] != node)
                return index * size + offset
        return None

    def _write(self, row: Row) -> None:
        nodes = self.chains.of(row.sequence)
        for position in range(row.scheduled.num_computed_tokens, row.end):
            index, offset = divmod(position, self._block_size)
            if index >= len(row.table):
                return
            content = self._content(self._device, row.table[index])
            known = position < len(nodes) and not row.ended_before
            content[offset] = nodes[position] if known else UNKNOWN

    def _content(self, pool: dict[int, list[int]], block: int) -> list[int]:
        return pool.setdefault(block, [UNKNOWN] * self._block_size)


@dataclass(frozen=True)
class Hit:
    """What the cache would give a sequence: full blocks, then part of one more."""

    blocks: tuple[int, ...]
    source: int | None = None
    num_partial: int = 0


@dataclass
class _Cached:
    """One cached block: its key is (parent, tokens, extras)."""

    parent: int
    tokens: tuple[int, ...]
    extras: Hashable
    key: int


@dataclass
class CacheShadow:
    """The prefix cache by docs/policy.md P2.4, P2.4a and P4.6."""

    block_size: int
    evictions: int = 0
    _chains: Chains = field(default_factory=Chains)
    _block_by_key: dict[int, int] = field(default_factory=dict)
    _by_block: dict[int, _Cached] = field(default_factory=dict)
    _by_parent: dict[int, list[int]] = field(default_factory=dict)

    @property
    def num_cached(self) -> int:
        return len(self._by_block)

    def __contains__(self, block: int) -> bool:
        """Whether a lookup could hit the block."""
        return block in self._by_block

    def enter(self, row: Row) -> None:
        """The row's newly full blocks enter, in table order; the first of equals stays."""
        for index, cached in self.filled(row.scheduled, row.sequence):
            block = row.table[index] if index < len(row.table) else 0
            if cached.key not in self._block_by_key and block not in self._by_block and block:
                self._block_by_key[cached.key] = block
                self._by_block[block] = cached
                self._by_parent.setdefault(cached.parent, []).append(block)

    def filled(
        self, scheduled: ScheduledSequence, sequence: LedgerSequence
    ) -> Iterator[tuple[int, _Cached]]:
        """The blocks that a step makes full, by table index, as far as their tokens are known."""
        start = scheduled.num_computed_tokens
        end = min(start + scheduled.num_scheduled_tokens, len(sequence.tokens))
        first, last = start // self.block_size, end // self.block_size
        if first < last:
            keys = self._keys(sequence.request, sequence.tokens, last)
            yield from enumerate(keys[first:], start=first)

    def next_key(self, request: Request, tokens: Sequence[int]) -> int | None:
        """Key of the first block that could be hit and is not cached; None if all are."""
        for cached in self._keys(request, tokens, (len(tokens) - 1) // self.block_size):
            if cached.key not in self._block_by_key:
                return cached.key
        return None

    def take(self, blocks: Iterable[int]) -> None:
        """Blocks taken from the queue lose their content."""
        for block in blocks:
            cached = self._by_block.pop(block, None)
            if cached is not None:
                self.evictions += 1
                del self._block_by_key[cached.key]
                self._by_parent[cached.parent].remove(block)

    def clear(self) -> None:
        self._block_by_key.clear()
        self._by_block.clear()
        self._by_parent.clear()

    def lookup(self, request: Request, tokens: Sequence[int]) -> Hit:
        """The longest allowed hit; its partial part need not be used."""
        limit = (len(tokens) - 1) // self.block_size
        keys = self._keys(request, tokens, limit)
        blocks: list[int] = []
        for cached in keys:
            block = self._block_by_key.get(cached.key)
            if block is None:
                break
            blocks.append(block)
        parent = keys[len(blocks) - 1].key if blocks else self._root()
        start = len(blocks) * self.block_size
        rest = tuple(tokens[start : start + min(self.block_size - 1, len(tokens) - 1 - start)])
        extras = _block_extras(request, start, self.block_size)
        best = (0, 0)
        for block in self._by_parent.get(parent, []):
            other = self._by_block[block]
            if other.extras == extras:
                best = max(best, (_common_prefix(rest, other.tokens), -block))
        if best[0] == 0:
            return Hit(tuple(blocks))
        return Hit(tuple(blocks), source=-best[1], num_partial=best[0])

    def _root(self) -> int:
        return self._chains.intern("root")

    def _keys(self, request: Request, tokens: Sequence[int], count: int) -> list[_Cached]:
        """The keys of the first `count` full blocks."""
        keys: list[_Cached] = []
        parent = self._root()
        for index in range(count):
            start = index * self.block_size
            own = tuple(tokens[start : start + self.block_size])
            extras = _block_extras(request, start, self.block_size)
            key = self._chains.intern(parent, own, extras)
            keys.append(_Cached(parent, own, extras, key))
            parent = key
        return keys


def _identity(request: Request) -> tuple[Hashable, ...]:
    """What beside tokens makes K/V, or who may share it."""
    return (request.cache_salt, request.adapter_id)


def _media_at(request: Request, position: int) -> Hashable:
    return tuple(
        (span.digest, position - span.offset)
        for span in request.media
        if span.offset <= position < span.offset + span.length
    )


def _block_extras(request: Request, start: int, block_size: int) -> Hashable:
    """Tagged identity fields of the block that covers [start, start + block_size)."""
    salt = request.cache_salt if start == 0 else None
    media = tuple(
        (span.digest, span.offset - start)
        for span in request.media
        if span.offset < start + block_size and start < span.offset + span.length
    )
    return (("salt", salt), ("adapter", request.adapter_id), ("media", media))


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
