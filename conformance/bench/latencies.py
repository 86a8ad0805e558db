"""What each request of a run saw: time to first token, per later token, to its end."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pagetwin.engine.core import CompletedStep

PERCENTILES = (50, 95, 99)


class Latencies:
    """Told each step as it ends; requests of one sample. `clock` is that of the arrivals."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._arrival_s: dict[str, float] = {}
        self._awaited: dict[str, None] = {}
        """Sequences that are being computed and have no token yet."""
        self._first_s: dict[str, float] = {}
        self._num_tokens: dict[str, int] = {}
        self._samples: dict[str, list[float]] = {"ttft": [], "tpot": [], "e2e": []}

    def add(self, completed: "CompletedStep") -> None:
        now = self._clock()
        for request in completed.plan.new_requests:
            seq_id = f"{request.request_id}/0"
            self._arrival_s[seq_id] = request.arrival_s
            self._num_tokens[seq_id] = request.sampling_params.max_tokens or 0
            self._awaited[seq_id] = None
        started = [seq_id for seq_id in self._awaited if seq_id in completed.result.sampled]
        for seq_id in started:
            del self._awaited[seq_id]
            self._first_s[seq_id] = now
            self._samples["ttft"].append(now - self._arrival_s[seq_id])
        for ending in completed.update.finished:
            self._samples["e2e"].append(now - self._arrival_s[ending.seq_id])
            later = self._num_tokens[ending.seq_id] - 1
            if later > 0:
                waited = now - self._first_s[ending.seq_id]
                self._samples["tpot"].append(waited / later)

    def percentiles_ms(self) -> dict[str, float]:
        """`ttft_p50` and so on, in milliseconds, of the measures that any request has."""
        return {
            f"{name}_p{percent}": float(np.percentile(samples, percent)) * 1e3
            for name, samples in self._samples.items()
            if samples
            for percent in PERCENTILES
        }
