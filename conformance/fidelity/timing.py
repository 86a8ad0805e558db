"""Compares what requests saw with what the twin says they see: percentiles, with intervals."""

from collections.abc import Callable, Sequence

import numpy as np

from pagetwin.conformance.fidelity.result import Measure
from pagetwin.simulator.recordings.rerun import Seen
from pagetwin.simulator.recordings.steps import Floats

PERCENTILES = (50, 95, 99)
RESAMPLES = 500
_BLOCK = 16
"""Steps drawn together: neighbours are alike."""

_LATENCIES: dict[str, Callable[[Seen], float | None]] = {
    "ttft": lambda one: one.ttft_s,
    "tpot": lambda one: one.tpot_s,
    "e2e": lambda one: one.e2e_s,
}


def compare(
    measured: Sequence[Seen],
    predicted: Sequence[Seen],
    step_seconds: tuple[Floats, Floats] | None = None,
) -> tuple[Measure, ...]:
    """The measures of two runs of the same requests, in the same order.

    `step_seconds`, measured and predicted for the recorded steps, give the throughput's interval;
    without them it has none (low and high are the error itself).
    """
    assert [one.request_id for one in measured] == [one.request_id for one in predicted]
    measures = [_throughput(measured, predicted, step_seconds)]
    for name, of in _LATENCIES.items():
        pairs = [(of(real), of(twin)) for real, twin in zip(measured, predicted, strict=True)]
        some = np.array([pair for pair in pairs if None not in pair], np.float64)
        if len(some):
            measures += _percentiles(name, some[:, 0], some[:, 1])
    return tuple(measures)


def tokens_per_s(seen: Sequence[Seen]) -> float:
    """Output tokens a second, from the first arrival to the last end."""
    took = max(one.finish_s for one in seen) - min(one.arrival_s for one in seen)
    return sum(one.num_output_tokens for one in seen) / took


def _throughput(
    measured: Sequence[Seen],
    predicted: Sequence[Seen],
    step_seconds: tuple[Floats, Floats] | None,
) -> Measure:
    real, twin = tokens_per_s(measured), tokens_per_s(predicted)
    error = twin / real - 1
    below, above = _step_spread(*step_seconds) if step_seconds else (0.0, 0.0)
    return Measure(
        name="throughput",
        measured=real,
        predicted=twin,
        error=error,
        low=error + below,
        high=error + above,
    )


def _step_spread(measured: Floats, predicted: Floats) -> tuple[float, float]:
    """How far the ratio of the sums strays, either way, when stretches are drawn anew."""
    starts = np.arange(0, len(measured), _BLOCK)
    real, twin = (np.add.reduceat(seconds, starts) for seconds in (measured, predicted))
    drawn = np.random.default_rng(0).integers(0, len(starts), (RESAMPLES, len(starts)))
    ratios = real[drawn].sum(axis=1) / twin[drawn].sum(axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5)) - real.sum() / twin.sum()
    return float(low), float(high)


def _percentiles(name: str, measured: Floats, predicted: Floats) -> list[Measure]:
    drawn = np.random.default_rng(0).integers(0, len(measured), (RESAMPLES, len(measured)))
    measures = []
    for percent in PERCENTILES:
        real, twin = (float(np.percentile(some, percent)) for some in (measured, predicted))
        samples = np.percentile(predicted[drawn], percent, axis=1)
        errors = samples / np.percentile(measured[drawn], percent, axis=1) - 1
        low, high = np.percentile(errors, (2.5, 97.5))
        measures.append(
            Measure(
                name=f"{name}_p{percent}",
                measured=real,
                predicted=twin,
                error=twin / real - 1,
                low=float(low),
                high=float(high),
            )
        )
    return measures
