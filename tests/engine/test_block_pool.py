"""What the block manager never asks of its pool, and what must not pass in silence."""

import pytest

from pagetwin.engine.block_pool import BlockPool


def test_a_block_that_nobody_holds_cannot_be_released() -> None:
    pool = BlockPool(3)
    block = pool.take()
    pool.hold(block)
    pool.release(block)
    pool.release(block)
    with pytest.raises(ValueError, match=f"block {block} is released more often than it is held"):
        pool.release(block)
    pool.check_invariants([])
