"""Decides what the key of a full block is: docs/policy.md P4.6."""

import hashlib
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

DIGEST_BYTES = 32

ROOT = bytes(DIGEST_BYTES)
"""Parent of a first block's key; no key has this digest."""

Extras = tuple[tuple[str, str], ...]
"""Tagged fields of a block's key beside its tokens (P4.6)."""

TOKEN: Final = "q"
"""A token as an item of `array` and `memoryview`."""

TOKEN_BYTES = array(TOKEN).itemsize

_DIGEST = hashlib.blake2b(digest_size=DIGEST_BYTES)
"""Of nothing; a copy of it is made faster than another."""


class PrefixKey(msgspec.Struct, frozen=True, gc=False):
    """What a cached block holds: equal keys mean equal tokens from the first position on.

    The branch begins with the digest of the key before, so a chain of any length compares in one
    step; tokens and extras compare by value, which is the check that P4.6 asks for on a hit. They
    are bytes, since a pool has a key for every block and the garbage collector walks all tuples.
    """

    digest: bytes
    """Of branch and rest."""
    branch: bytes
    """See `branch_of`."""
    rest: bytes
    """The tokens but the first."""


def branch_of(parent: bytes, extras: Extras, first_token: int) -> bytes:
    """What two blocks have in common of which the one is a partial hit for the other (P2.4a).

    Parents are equally long and extras end where their brackets close, so no two read alike.
    """
    return parent + _encoded(extras) + array(TOKEN, (first_token,)).tobytes()


def chain_keys(
    parent: bytes, token_ids: Sequence[int], extras: Sequence[Extras]
) -> list[PrefixKey]:
    """Keys of successive full blocks, as many as there are `extras`, behind `parent`."""
    packed = array(TOKEN, token_ids).tobytes()
    block_bytes = len(packed) // len(extras)
    keys: list[PrefixKey] = []
    start, latest, encoded = 0, None, b""
    for tags in extras:
        if tags is not latest:  # most blocks of a sequence have the same
            latest, encoded = tags, _encoded(tags)
        second, end = start + TOKEN_BYTES, start + block_bytes
        branch, rest = parent + encoded + packed[start:second], packed[second:end]
        hasher = _DIGEST.copy()
        hasher.update(branch + rest)
        parent = hasher.digest()
        keys.append(PrefixKey(parent, branch, rest))
        start = end
    return keys


@lru_cache(maxsize=1024)
def _encoded(extras: Extras) -> bytes:
    return repr(extras).encode()
