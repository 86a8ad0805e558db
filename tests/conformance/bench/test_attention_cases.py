"""The attention batches are those that peers were timed on."""

import pytest

from pagetwin.conformance.bench.attention_cases import Batch, attention_batches
from pagetwin.reports.peers import Peers, load_peers


@pytest.mark.parametrize("peers", load_peers(), ids=lambda peers: peers.device)
def test_the_batches_are_the_peers_in_their_order(peers: Peers) -> None:
    assert [batch.name for batch in attention_batches()] == [case.case for case in peers.attention]


@pytest.mark.parametrize("peers", load_peers(), ids=lambda peers: peers.device)
@pytest.mark.parametrize("batch", attention_batches(), ids=lambda batch: batch.name)
def test_bytes_and_flops_of_a_batch_are_those_that_the_peers_rates_were_worked_out_from(
    batch: Batch, peers: Peers
) -> None:
    """So the drawn lengths of the mixed batches are the same ones, too."""
    case = peers.case(batch.name)
    assert case is not None
    ran = [speed for speed in (case.fa3, case.vllm_triton) if speed is not None]
    assert ran
    for speed in ran:
        assert batch.num_bytes / speed.us / 1e3 == pytest.approx(speed.gb_per_s, rel=1e-4)
        assert batch.flops / speed.us / 1e6 == pytest.approx(speed.tflops, rel=1e-4)
