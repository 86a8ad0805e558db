"""Decides the rows of the small trace that comes with the package.

    python -m pagetwin.simulator.synthetic_trace OUT.csv [NUM_ROWS [SEED]]

makes a trace in the Azure CSV format whose arrivals and lengths have the statistics of the
Azure conversation trace of 2023 (19,366 requests in 58 minutes); no row is taken from it. The
shipped file is `simulator/data/synthetic_conversation.csv`, made with the default arguments.

Gaps between arrivals are gamma distributed, by mean and coefficient of variation. Lengths are
drawn through the straight lines between the quantiles below, on a logarithmic scale. Each
column is stratified (one draw in each of NUM_ROWS equal slices of probability, in random order),
so that a short trace, too, is close to its targets; columns are independent, as they nearly are
in the original (rank correlation 0.07).
"""

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

NUM_ROWS = 200
SEED = 20231116
START = datetime(2023, 11, 16, 18, 15, 46)

GAP_MEAN_S = 0.1808
GAP_VARIATION = 1.094
"""Standard deviation over mean of the gaps between arrivals; 1 would be a Poisson process."""

LEVELS = (0.0, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
CONTEXT_QUANTILES = (2, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 14050)
GENERATED_QUANTILES = (7, 41, 54, 85, 129, 395, 424, 451, 601, 1000)

FloatArray = npt.NDArray[np.float64]


def synthetic_rows(num_rows: int, seed: int) -> list[tuple[datetime, int, int]]:
    """(time of arrival, context tokens, generated tokens) of each row, in order of time."""
    # scipy is slow to import, and only the generator needs it.
    from scipy.stats import gamma  # type: ignore[import-untyped]

    random = np.random.Generator(np.random.PCG64(seed))
    shape = 1 / GAP_VARIATION**2
    gaps = gamma.ppf(_stratified(num_rows, random), shape, scale=GAP_MEAN_S / shape)
    arrivals = np.cumsum(gaps) - gaps[0]
    context = _lengths(CONTEXT_QUANTILES, _stratified(num_rows, random))
    generated = _lengths(GENERATED_QUANTILES, _stratified(num_rows, random))
    return [
        (START + timedelta(seconds=float(arrival)), int(prompt), int(output))
        for arrival, prompt, output in zip(arrivals, context, generated, strict=True)
    ]


def _stratified(count: int, random: np.random.Generator) -> FloatArray:
    """`count` probabilities, one in each slice [i / count, (i + 1) / count), in random order."""
    return random.permutation((np.arange(count) + random.random(count)) / count)


def _lengths(quantiles: Sequence[int], probabilities: FloatArray) -> npt.NDArray[np.int64]:
    logs = np.interp(probabilities, LEVELS, np.log(quantiles))
    return np.rint(np.exp(logs)).astype(np.int64)


def write_trace(path: Path, *, num_rows: int = NUM_ROWS, seed: int = SEED) -> None:
    """Writes a synthetic trace; the same arguments give the same bytes."""
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for time, prompt, output in synthetic_rows(num_rows, seed):
        lines.append(f"{time:%Y-%m-%d %H:%M:%S.%f}0,{prompt},{output}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    if not 1 <= len(arguments) <= 3 or not all(text.isdecimal() for text in arguments[1:]):
        print("usage: python -m pagetwin.simulator.synthetic_trace OUT.csv [NUM_ROWS [SEED]]")
        return 2
    num_rows, seed = [int(text) for text in arguments[1:]] + [NUM_ROWS, SEED][len(arguments) - 1 :]
    write_trace(Path(arguments[0]), num_rows=num_rows, seed=seed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
