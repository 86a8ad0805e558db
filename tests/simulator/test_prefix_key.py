"""Keys are equal exactly where contents are, and the index by branch forgets nothing."""

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pagetwin.simulator.branches import Branches
from pagetwin.simulator.prefix_key import ROOT, Extras, PrefixKey, branch_of, chain_keys

BLOCK_SIZE = 2

Block = tuple[tuple[int, ...], Extras]
"""Tokens and extras."""

texts = st.sampled_from(["", "a", "'", "(", "),(", "a', 'b", "\\"])
extras = st.lists(st.tuples(texts, texts), max_size=2).map(tuple)
tokens = st.tuples(*[st.sampled_from([0, 1, -1, 2**62])] * BLOCK_SIZE)
chains = st.lists(st.tuples(tokens, extras), min_size=1, max_size=4)


def keys_of(chain: Sequence[Block]) -> list[PrefixKey]:
    token_ids = [token for tokens, _ in chain for token in tokens]
    return chain_keys(ROOT, token_ids, [extras for _, extras in chain])


def common(one: Sequence[object], other: Sequence[object]) -> int:
    pairs = zip(one, other, strict=False)
    unequal = (i for i, (a, b) in enumerate(pairs) if a != b)
    return next(unequal, min(len(one), len(other)))


@given(chains, chains, st.integers(0, 4))
def test_keys_are_equal_as_far_as_contents_are(
    one: list[Block], other: list[Block], num_same: int
) -> None:
    other = [*one[:num_same], *other]
    assert common(keys_of(one), keys_of(other)) == common(one, other)
    digests = [key.digest for key in {*keys_of(one), *keys_of(other)}]
    assert len(digests) == len(set(digests))
    assert ROOT not in digests


@given(chains, st.integers(0, 3))
def test_a_chain_may_be_made_in_parts(chain: list[Block], num_first: int) -> None:
    first, rest = chain[:num_first], chain[num_first:]
    keys = keys_of(first) if first else []
    parent = keys[-1].digest if keys else ROOT
    if rest:
        token_ids = [token for tokens, _ in rest for token in tokens]
        keys += chain_keys(parent, token_ids, [extras for _, extras in rest])
    assert keys == keys_of(chain)


@given(chains, tokens, extras)
def test_blocks_are_on_one_branch_if_parent_extras_and_first_token_are_equal(
    chain: list[Block], token_ids: tuple[int, ...], own: Extras
) -> None:
    *parents, (last, last_extras) = chain
    parent = keys_of(parents)[-1].digest if parents else ROOT
    is_same = (token_ids[0], own) == (last[0], last_extras)
    assert (branch_of(parent, own, token_ids[0]) == keys_of(chain)[-1].branch) == is_same


def test_the_index_by_branch_gives_back_what_it_was_given() -> None:
    rng, branches, held = random.Random(0), Branches(), dict[int, bytes]()
    most = 0
    for _ in range(3000):
        block_id = rng.randrange(20)
        if block_id in held:
            branches.remove(held.pop(block_id), block_id)
        else:
            held[block_id] = b"%d" % rng.randrange(6)
            branches.add(held[block_id], block_id)
        for branch in (b"%d" % number for number in range(6)):
            expected = sorted(block for block, other in held.items() if other == branch)
            assert branches.blocks(branch) == expected
            most = max(most, len(expected))
        branches.check_invariants((branch, block) for block, branch in held.items())
    assert most > 5
