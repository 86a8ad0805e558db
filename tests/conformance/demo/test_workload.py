"""The demo's workload: the same for the same seed, and hard enough for everything to happen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.demo.account import full_block_hits, is_greedy, last_counters
from pagetwin.conformance.demo.prompts import QUESTION, PromptWriter
from pagetwin.conformance.demo.result import MUST_HAPPEN
from pagetwin.conformance.demo.workload import (
    CACHE,
    MIN_REQUESTS,
    SCHEDULER,
    draw_workload,
    trace_window,
)
from pagetwin.conformance.history import steps
from pagetwin.conformance.lockstep import replay_history
from pagetwin.engine.errors import RequestError, TraceError
from pagetwin.engine.tokenizer import ByteTokenizer, ChatMessage
from pagetwin.simulator.replica import Replica


@dataclass(frozen=True)
class Entry:
    arrival_s: float
    prompt_tokens: int
    output_tokens: int


entries = st.lists(
    st.builds(Entry, st.floats(0, 1e6), st.integers(1, 100_000), st.integers(1, 5000)),
    min_size=1,
    max_size=30,
)


@given(window=entries, seed=st.integers(0, 2**40))
def test_any_trace_becomes_requests_that_the_engine_takes(window: list[Entry], seed: int) -> None:
    """Even where a token is a letter."""
    workload = draw_workload(window, PromptWriter(ByteTokenizer()), seed=seed)
    assert len(workload) == len(window)
    ids = [client.request.request_id for client in workload]
    assert ids == sorted(set(ids))
    submitted = [client.submit_step for client in workload]
    assert submitted == sorted(submitted)
    for client in workload:
        request = client.request
        max_tokens = request.sampling_params.max_tokens or 0
        needed = request.num_prompt_tokens + max_tokens
        assert request.num_prompt_tokens >= 1
        assert needed <= SCHEDULER.max_model_len
        assert -(-needed // CACHE.block_size) <= CACHE.num_blocks - 1
        assert request.num_samples <= SCHEDULER.max_num_seqs


def test_prompts_of_one_instruction_share_their_start_and_end_with_the_question() -> None:
    write, decode = PromptWriter(ByteTokenizer()), ByteTokenizer().decode
    one, other = (write("Be brief.", passage, 70) for passage in ("a" * 90, "b" * 90))
    assert decode(one).startswith("system: Be brief.\nuser: aaaa")
    assert decode(other).startswith("system: Be brief.\nuser: bbbb")
    assert QUESTION in decode(one)
    assert len(one) == len(other) >= 70


def test_a_model_without_a_chat_template_gets_plain_text() -> None:
    class Plain(ByteTokenizer):
        def apply_chat_template(self, messages: Sequence[ChatMessage], **options: Any) -> str:
            raise RequestError("no template")

    text = Plain().decode(PromptWriter(Plain())("Be brief.", "A passage.", 99))
    assert text == f"Be brief.\n\nA passage.\n\n{QUESTION}\n\nAnswer:"


def test_a_seed_draws_the_same_workload_and_another_seed_another(draw: Callable[..., Any]) -> None:
    assert draw(24, 7) == draw(24, 7)
    assert draw(24, 7) != draw(24, 8)


def test_samples_priorities_and_aborts_are_all_drawn(draw: Callable[..., Any]) -> None:
    workload = draw(32, 0)
    assert {client.request.num_samples for client in workload} >= {1, 2, 3}
    assert len({client.request.priority for client in workload}) == 3
    assert sorted(c.abort_after_tokens for c in workload if c.abort_after_tokens is not None) == [
        0,
        3,
    ]
    assert sum(is_greedy(client.request) for client in workload) > 20


def test_a_trace_that_is_too_short_is_refused_with_both_numbers() -> None:
    with pytest.raises(TraceError, match="1, asked for 20"):
        trace_window([Entry(0.0, 1, 1)], num_requests=20, seed=0)


@pytest.mark.parametrize("num_requests", [MIN_REQUESTS, 32, 64])
@pytest.mark.parametrize("seed", range(4))
def test_everything_that_must_happen_happens_and_the_twin_agrees(
    num_requests: int, seed: int, make_run: Callable[..., Any]
) -> None:
    run = make_run(num_requests, seed)
    assert len(run.outputs) == num_requests
    assert all(output.finished for output in run.outputs.values())
    assert run.progress == sorted(run.progress)
    assert run.progress[-1] == num_requests
    report = replay_history(run.records, Replica(CACHE, SCHEDULER))
    assert report.equal, report.explain()
    assert check_all(run.records) == []
    books = last_counters(run.records)
    happened = {name: getattr(books, name, None) for name in MUST_HAPPEN}
    happened["full_block_hits"] = full_block_hits(steps(run.records), CACHE.block_size)
    assert all(happened.values()), happened
    assert books.aborts == 2


def test_a_client_that_hangs_up_gets_what_it_listened_to(make_run: Callable[..., Any]) -> None:
    run = make_run(32, 0)
    patience = {
        client.request.request_id: client.abort_after_tokens
        for client in run.workload
        if client.abort_after_tokens is not None
    }
    heard = {name: len(run.outputs[name].outputs[0].token_ids) for name in patience}
    assert heard == patience
    assert {run.outputs[name].outputs[0].finish_reason for name in patience} == {"abort"}
