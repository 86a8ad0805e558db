"""Generated workloads have the statistics they are named for, and seeds mean what they should."""

import itertools
import tracemalloc
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.token_source import hashed_token
from pagetwin.simulator.workloads.arrival_times import ArrivalTimes, Diurnal, Gamma, Poisson
from pagetwin.simulator.workloads.closed_loop import ClosedLoop
from pagetwin.simulator.workloads.draws import Purpose, generator
from pagetwin.simulator.workloads.lengths import (
    Fixed,
    Lengths,
    LogNormal,
    Resampled,
    Uniform,
    fitted,
)
from pagetwin.simulator.workloads.open_loop import OpenLoop
from pagetwin.simulator.workloads.sessions import Sessions
from pagetwin.simulator.workloads.spec import parse_workload
from pagetwin.simulator.workloads.trimmed import Trimmed
from pagetwin.simulator.workloads.workload import Arrival, Extent

COUNT = 20000


def take(lengths: Lengths, count: int = COUNT) -> npt.NDArray[np.int64]:
    draws = lengths.draws(generator(5, Purpose.PROMPTS))
    return np.fromiter(itertools.islice(draws, count), np.int64)


@pytest.mark.parametrize(
    ("arrivals", "cv"), [(Poisson(4.0), 1.0), (Gamma(4.0, 3.0), 3.0), (Gamma(4.0, 0.3), 0.3)]
)
def test_gaps_have_their_mean_and_variation(arrivals: ArrivalTimes, cv: float) -> None:
    times = np.fromiter(itertools.islice(arrivals.times(1), COUNT), float)
    gaps = np.diff(times)
    # Four standard errors of the mean of the gaps.
    assert gaps.mean() == pytest.approx(0.25, rel=4 * cv / COUNT**0.5)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_a_diurnal_rate_swings_as_told() -> None:
    arrivals = Diurnal(rate=50.0, swing=0.8, period_s=40.0)
    times = np.fromiter(itertools.islice(arrivals.times(2), COUNT), float)
    phases = np.histogram(times[times < 400.0] % 40.0, bins=8, range=(0.0, 40.0))[0]
    angles = np.linspace(0, 2 * np.pi, 9)
    expected = 50.0 * 400 / 8 * (1 - 0.8 * np.diff(np.cos(angles)) / np.diff(angles))
    assert np.abs(phases - expected).max() < 4.5 * np.sqrt(expected.max())
    assert phases.max() > 4 * phases.min()


def test_two_rates_of_a_seed_are_one_pattern() -> None:
    slow = np.fromiter(itertools.islice(Poisson(1.0).times(3), 100), float)
    fast = np.fromiter(itertools.islice(Poisson(4.0).times(3), 100), float)
    assert slow / 4 == pytest.approx(fast)


def test_lengths_have_their_statistics() -> None:
    assert set(take(Fixed(9), 10)) == {9}
    uniform = take(Uniform(3, 6))
    assert np.bincount(uniform)[3:] == pytest.approx([COUNT / 4] * 4, rel=0.08)
    logs = take(LogNormal(500.0, 1.0))
    assert logs.mean() == pytest.approx(500, rel=0.04)
    assert logs.std() / logs.mean() == pytest.approx(1.0, rel=0.1)
    assert take(LogNormal(500.0, 3.0, 700)).max() == 700
    assert set(take(Resampled((4, 8, 8)), 100)) == {4, 8}


def test_a_fit_gives_back_what_was_drawn() -> None:
    found = fitted(take(LogNormal(500.0, 0.7)).tolist())
    assert found.mean == pytest.approx(500, rel=0.03)
    assert found.cv == pytest.approx(0.7, rel=0.05)
    with pytest.raises(ConfigError, match="too few to fit"):
        fitted([3])


@given(st.floats(1, 1e5), st.floats(0, 50), st.integers(0, 2**63 - 1))
def test_no_log_normal_length_is_below_one_or_not_a_number(
    mean: float, cv: float, seed: int
) -> None:
    draws = LogNormal(mean, cv).draws(generator(seed, Purpose.PROMPTS))
    assert all(next(draws) >= 1 for _ in range(50))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed={seed} is outside"):
        generator(seed, Purpose.ARRIVALS)


def open_arrivals(text: str) -> list[tuple[float, int, int]]:
    arrivals = parse_workload(text).begin(11).arrivals()
    return [
        (
            a.request.arrival_s,
            a.request.num_prompt_tokens,
            a.request.sampling_params.max_tokens or 0,
        )
        for a in arrivals
    ]


def test_what_is_drawn_for_one_purpose_moves_nothing_else() -> None:
    base = open_arrivals("poisson:rate=2,input=uniform:1:90,output=uniform:1:90,requests=300")
    inputs = open_arrivals("poisson:rate=2,input=7,output=uniform:1:90,requests=300")
    rates = open_arrivals("gamma:rate=9,cv=2,input=uniform:1:90,output=uniform:1:90,requests=300")
    assert [(t, o) for t, _, o in base] == [(t, o) for t, _, o in inputs]
    assert [row[1:] for row in base] == [row[1:] for row in rates]
    assert base != inputs
    assert base != rates


def test_a_duration_ends_a_workload() -> None:
    rows = open_arrivals("poisson:rate=50,input=1,output=1,duration=10")
    assert 400 < len(rows) < 600
    assert rows[-1][0] < 10


def test_a_stream_holds_none_of_the_requests_that_it_gave() -> None:
    def peak(count: int) -> int:
        arrivals = parse_workload(f"poisson:rate=8,input=64,output=9,requests={count}")
        stream = arrivals.begin(0).arrivals()
        next(stream)
        tracemalloc.start()
        assert sum(1 for _ in stream) == count - 1
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    short, long = peak(3000), peak(30000)
    assert long < short + 20_000


CLOSED = ClosedLoop(
    num_users=3,
    think_s=1.0,
    prompt=Uniform(1, 50),
    output=Uniform(1, 50),
    extent=Extent(num_requests=60),
)


def run_closed(pick: int) -> dict[str, tuple[int, int]]:
    """Ends the pick-th oldest request under way each second; lengths by request id."""
    stream = CLOSED.begin(4)
    live = list(stream.arrivals())
    lengths: dict[str, tuple[int, int]] = {}
    now = 100.0
    while live:
        assert len({arrival.session for arrival in live}) == len(live) <= 3
        done = live.pop(pick % len(live))
        request = done.request
        lengths[request.request_id] = (
            request.num_prompt_tokens,
            request.sampling_params.max_tokens or 0,
        )
        after = stream.follow_up(request.request_id, now)
        if after is not None:
            assert after.session == done.session
            assert after.request.arrival_s >= now
            live.append(after)
        now += 1
    return lengths


def test_users_have_one_request_each_and_ask_the_same_whoever_is_served_first() -> None:
    first, last = run_closed(0), run_closed(-1)
    assert len(first) == len(last) == 60
    common = set(first) & set(last)
    assert len(common) > 20
    assert all(first[name] == last[name] for name in common)
    # Served unfairly, one user asks more; so what is common is not everything.
    assert set(first) != set(last)


def conversations() -> Iterator[tuple[Arrival, Arrival]]:
    """Every turn of every session with the one after it."""
    stream = Sessions(
        arrivals=Poisson(1.0),
        turns=Uniform(1, 5),
        think_s=2.0,
        prompt=Uniform(1, 20),
        output=Uniform(1, 20),
        extent=Extent(num_requests=200),
    ).begin(6)
    count = 0
    for arrival in stream.arrivals():
        turn: Arrival | None = arrival
        while turn is not None:
            count += 1
            now = turn.request.arrival_s + 3.0
            after = stream.follow_up(turn.request.request_id, now)
            if after is not None:
                assert after.request.arrival_s >= now
                yield turn, after
            turn = after
    assert 195 <= count <= 200


def test_a_turn_says_all_that_was_said_and_answered_before_and_something_new() -> None:
    pairs = list(conversations())
    assert len(pairs) > 50
    for turn, after in pairs:
        answer = tuple(
            hashed_token(turn.request, 0, position)
            for position in range(turn.request.sampling_params.max_tokens or 0)
        )
        said = turn.request.prompt_token_ids + answer
        assert after.request.prompt_token_ids[: len(said)] == said
        assert after.request.num_prompt_tokens > len(said)
        assert after.session == turn.session


def test_trimmed_requests_fit_and_others_stay_as_they_are() -> None:
    workload = OpenLoop(
        arrivals=Poisson(1.0),
        prompt=Uniform(1, 200),
        output=Uniform(1, 200),
        extent=Extent(num_requests=300),
    )
    pairs = list(
        zip(workload.begin(1).arrivals(), Trimmed(workload, 100).begin(1).arrivals(), strict=True)
    )
    trimmed = 0
    for whole, cut in pairs:
        outputs = cut.request.sampling_params.max_tokens or 0
        assert 2 <= cut.request.num_prompt_tokens + outputs <= 100
        assert whole.request.prompt_token_ids[: cut.request.num_prompt_tokens] == (
            cut.request.prompt_token_ids
        )
        trimmed += whole != cut
    assert 100 < trimmed < 300
    with pytest.raises(ConfigError, match="max_model_len=1 is below 2"):
        Trimmed(workload, 1)
