"""Keys of full blocks: equal for equal content, and different in every field that tells apart."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.config import CacheConfig
from pagetwin.engine.prefix_keys import BlockKey, KeyChain, block_extras
from pagetwin.engine.request import MediaSpan, Request

CACHE = CacheConfig(num_blocks=10, block_size=2)
TOKENS = (5, 6, 7, 8, 9, 10)


def _keys(cache: CacheConfig = CACHE, **fields: Any) -> list[BlockKey]:
    request = Request(**({"request_id": "a", "prompt_token_ids": TOKENS} | fields))
    chain = KeyChain(request, cache)
    return [chain.key(index, request.prompt_token_ids) for index in range(3)]


def test_requests_that_agree_share_every_key() -> None:
    assert _keys(request_id="a") == _keys(request_id="b", priority=3, arrival_s=2.0)


@given(st.integers(0, 5), st.sampled_from([1, 255, 256, 65_536, 2**31]))
def test_another_token_changes_its_blocks_key_and_all_after(place: int, shift: int) -> None:
    changed = list(TOKENS)
    changed[place] += shift
    after = _keys(prompt_token_ids=tuple(changed))
    differ = [a.key != b.key for a, b in zip(_keys(), after, strict=True)]
    assert differ == [index >= place // 2 for index in range(3)]


PICTURE = MediaSpan(digest="cat", offset=2, length=2)


@pytest.mark.parametrize(
    ("left", "right", "first_different"),
    [
        ({"cache_salt": "x"}, {}, 0),
        ({"cache_salt": ""}, {}, 0),
        ({"cache_salt": "x"}, {"cache_salt": "y"}, 0),
        ({"adapter_id": "x"}, {}, 0),
        ({"cache_salt": "x"}, {"adapter_id": "x"}, 0),
        ({"media": (PICTURE,)}, {}, 1),
        ({"media": (PICTURE,)}, {"media": (MediaSpan(digest="dog", offset=2, length=2),)}, 1),
        ({"media": (PICTURE,)}, {"media": (MediaSpan(digest="cat", offset=3, length=2),)}, 1),
        ({"media": (MediaSpan(digest="cat", offset=1, length=1),)}, {}, 0),
    ],
)
def test_requests_that_differ_in_a_field_share_no_key_from_there_on(
    left: dict[str, Any], right: dict[str, Any], first_different: int
) -> None:
    differ = [a.key != b.key for a, b in zip(_keys(**left), _keys(**right), strict=True)]
    assert differ == [index >= first_different for index in range(3)]


@pytest.mark.parametrize("field", ["kv_cache_dtype", "weights_version"])
def test_another_kind_of_cache_shares_no_key(field: str) -> None:
    knobs: dict[str, Any] = {"num_blocks": 10, "block_size": 2, field: "other"}
    other = CacheConfig(**knobs)
    assert all(a.key != b.key for a, b in zip(_keys(), _keys(other), strict=True))


def test_extras_are_tagged_and_a_picture_stands_where_its_block_has_it() -> None:
    """A picture in tokens 6 to 9, another that ends where a block begins."""
    cache = CacheConfig(num_blocks=10, block_size=4, weights_version="w")
    request = Request(
        request_id="a",
        prompt_token_ids=tuple(range(20)),
        cache_salt="s",
        adapter_id="lora",
        media=(
            MediaSpan(digest="cat", offset=6, length=4),
            MediaSpan(digest="dog", offset=12, length=4),
        ),
    )
    adapter = (("adapter", "lora"),)
    always = (("kv_cache_dtype", "auto"), ("weights_version", "w"))
    assert [block_extras(request, index, cache) for index in range(5)] == [
        (("salt", "s"), *adapter, *always),
        (*adapter, ("media", "cat"), ("media_offset", 2), *always),
        (*adapter, ("media", "cat"), ("media_offset", -2), *always),
        (*adapter, ("media", "dog"), ("media_offset", 0), *always),
        (*adapter, *always),
    ]
    plain = Request(request_id="b", prompt_token_ids=TOKENS)
    assert block_extras(plain, 0, cache) == always
    for one in (request, plain):
        chain = KeyChain(one, cache)
        for index in range(5):
            assert chain.extras_of(index) == block_extras(one, index, cache)


def test_keys_are_computed_once() -> None:
    request = Request(request_id="a", prompt_token_ids=TOKENS)
    chain = KeyChain(request, CACHE)
    assert chain.key(2, TOKENS) is chain.key(2, TOKENS)
    fork = chain.copy()
    assert fork.key(1, TOKENS) is chain.key(1, TOKENS)
