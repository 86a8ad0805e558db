"""The attention batches are those that peers were timed on."""

import pytest

from pagetwin.conformance.bench.attention_cases import Batch, attention_batches
from pagetwin.reports.peers import load_peers


def test_the_batches_are_the_peers_in_their_order() -> None:
    assert [batch.name for batch in attention_batches()] == [
        peer.case for peer in load_peers().attention
    ]


@pytest.mark.parametrize("batch", attention_batches(), ids=lambda batch: batch.name)
def test_bytes_and_flops_of_a_batch_are_those_that_the_peers_rates_were_worked_out_from(
    batch: Batch,
) -> None:
    """So the drawn lengths of the mixed batches are the same ones, too."""
    peer = load_peers().case(batch.name)
    assert peer is not None
    for speed in (peer.fa3, peer.vllm_triton):
        assert batch.num_bytes / speed.us / 1e3 == pytest.approx(speed.gb_per_s, rel=1e-4)
        assert batch.flops / speed.us / 1e6 == pytest.approx(speed.tflops, rel=1e-4)
