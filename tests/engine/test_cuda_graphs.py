"""Which step runs as which graph, and what is said of the others."""

import numpy as np
import pytest

from pagetwin.engine.cuda_graphs import Dispatcher, graph_sizes
from pagetwin.engine.step_inputs import dummy_chunks, pad_decodes


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 8, 100, 256, 257, 512, 1000])
def test_every_number_of_sequences_has_a_graph_and_little_padding(max_num_seqs: int) -> None:
    sizes = graph_sizes(max_num_seqs)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    dispatcher = Dispatcher(sizes)
    for num_seqs in range(1, max_num_seqs + 1):
        route = dispatcher.route(num_seqs, num_seqs, draws_once=True)
        assert num_seqs <= route.size <= max(2 * num_seqs, num_seqs + 15)
        assert route.reason == ""


def test_a_step_without_a_graph_says_why() -> None:
    dispatcher = Dispatcher((1, 2, 4))
    assert dispatcher.route(2, 3, draws_once=True).reason == "some sequence has more than one token"
    reason = "some sequence draws no token, or several"
    assert dispatcher.route(2, 2, draws_once=False).reason == reason
    assert dispatcher.route(5, 5, draws_once=True).reason == "more than 4 sequences"
    assert dispatcher.route(5, 5, draws_once=True).size == 0
    assert Dispatcher().route(1, 1, draws_once=True).reason == "graphs are off (enforce_eager)"


def test_padding_sequences_are_empty_and_write_nothing() -> None:
    step = dummy_chunks(np.ones(2, np.int64))
    padded = pad_decodes(step, 4)
    assert padded.query_start_loc.tolist() == [0, 1, 2, 3, 4]
    assert padded.seq_lens.tolist() == [1, 1, 0, 0]
    assert padded.slot_mapping.tolist() == [-1] * 4
    assert padded.rows.dtype == np.int32
    assert pad_decodes(step, 2).seq_lens.tolist() == step.seq_lens.tolist()


def test_only_a_step_of_single_tokens_that_fits_can_be_padded() -> None:
    with pytest.raises(AssertionError, match="only single tokens"):
        pad_decodes(dummy_chunks(np.array([2])), 4)
    with pytest.raises(AssertionError, match="3 sequences are more than 2"):
        pad_decodes(dummy_chunks(np.ones(3, np.int64)), 2)
