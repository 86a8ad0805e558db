"""Names of full blocks in the prefix cache: a SHA-256 chain over tokens and tagged extras."""

import hashlib
from array import array
from collections.abc import Sequence as TokenSequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from pagetwin.engine.config import CacheConfig
from pagetwin.engine.request import Request

ROOT_KEY = b"root"
"""Parent key of a sequence's first block."""

Extras = tuple[tuple[str, str | int], ...]

_encode_extras = msgspec.msgpack.Encoder().encode


class BlockKey(NamedTuple):
    """One full block's identity: its key, and all that the key was made from (P4.6)."""

    key: bytes
    parent: bytes
    token_ids: tuple[int, ...]
    extras: Extras


def block_extras(request: Request, index: int, cache: CacheConfig) -> Extras:
    """Whatever beside its tokens tells block `index` of the request apart, as tagged fields."""
    extras: list[tuple[str, str | int]] = []
    if index == 0 and request.cache_salt is not None:
        extras.append(("salt", request.cache_salt))
    if request.adapter_id is not None:
        extras.append(("adapter", request.adapter_id))
    start, end = index * cache.block_size, (index + 1) * cache.block_size
    for span in request.media:
        if span.offset < end and span.offset + span.length > start:
            extras.append(("media", span.digest))
            # Relative to the block: the same picture one token further is other content.
            extras.append(("media_offset", span.offset - start))
    extras.append(("kv_cache_dtype", cache.kv_cache_dtype))
    extras.append(("weights_version", cache.weights_version))
    return tuple(extras)


@lru_cache(maxsize=2**14)
def make_block_key(parent: bytes, token_ids: tuple[int, ...], extras: Extras) -> BlockKey:
    """Key of a full block: SHA-256 over its parent's key, its tokens as int64, its extras.

    Remembered for a while, because requests that come together often begin alike.
    """
    content = parent + array("q", token_ids).tobytes() + _encode_extras(extras)
    return BlockKey(hashlib.sha256(content).digest(), parent, token_ids, extras)


class KeyChain:
    """The keys of one sequence's full blocks, each computed once, when first asked for."""

    __slots__ = ("_cache", "_keys", "_request", "_usual_extras")

    def __init__(self, request: Request, cache: CacheConfig) -> None:
        self._request = request
        self._cache = cache
        self._keys: list[BlockKey] = []
        # What every block but the first has, unless media make them differ.
        self._usual_extras = None if request.media else block_extras(request, 1, cache)

    def copy(self) -> "KeyChain":
        """The chain of a fork: the same keys so far, apart from here on."""
        chain = KeyChain(self._request, self._cache)
        chain._keys = self._keys.copy()
        return chain

    def parent_of(self, index: int) -> bytes:
        """Key of the block before block `index`, which must have been computed."""
        return self._keys[index - 1].key if index else ROOT_KEY

    def extras_of(self, index: int) -> Extras:
        if index and self._usual_extras is not None:
            return self._usual_extras
        return block_extras(self._request, index, self._cache)

    def key(self, index: int, token_ids: TokenSequence[int]) -> BlockKey:
        """Key of block `index` of the sequence with these tokens; the block must be full."""
        size = self._cache.block_size
        while len(self._keys) <= index:
            block = len(self._keys)
            tokens = tuple(token_ids[block * size : (block + 1) * size])
            assert len(tokens) == size, f"block {block} is not full"
            self._keys.append(make_block_key(self.parent_of(block), tokens, self.extras_of(block)))
        return self._keys[index]
