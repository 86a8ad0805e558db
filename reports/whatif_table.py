"""Runs as they were, as the twin has them, and under other knobs, side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pagetwin.reports.tables import Table, number
from pagetwin.simulator.recordings.rerun import Seen
from pagetwin.simulator.recordings.whatif import WhatIf

_COLUMNS = ("output tok/s", "ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95", "e2e_p50", "e2e_p95")


def whatif_table(results: Sequence[WhatIf]) -> Table:
    """Three rows per run; latencies in milliseconds. The change is the third over the second."""
    rows = []
    for result in results:
        for name, seen, preemptions in (
            ("measured", result.measured, ""),
            ("twin", result.same.seen, str(result.same.num_preemptions)),
            ("changed", result.changed.seen, str(result.changed.num_preemptions)),
        ):
            figures = summary(seen)
            cells = [number(figures[column], 4) for column in _COLUMNS]
            rows.append([result.label, name, str(len(seen)), preemptions, *cells])
    return Table(["run", "", "requests", "preempted", *_COLUMNS], rows, num_left=2)


def as_document(results: Sequence[WhatIf], label: str, changes: dict[str, str]) -> dict[str, Any]:
    """The same for machines."""
    return {
        "schema": "pagetwin.whatif/1",
        "costs": label,
        "changes": changes,
        "runs": [
            {
                "label": result.label,
                "measured": summary(result.measured),
                "twin": summary(result.same.seen),
                "changed": summary(result.changed.seen),
                "refused": result.changed.refused,
            }
            for result in results
        ],
    }


def summary(seen: Sequence[Seen]) -> dict[str, float | None]:
    """The figures of one run; None where no request has one."""
    if not seen:
        return dict.fromkeys(_COLUMNS)
    took = max(one.finish_s for one in seen) - min(one.arrival_s for one in seen)
    tokens = sum(one.num_output_tokens for one in seen)
    figures: dict[str, float | None] = {"output tok/s": tokens / took}
    for name in ("ttft", "tpot", "e2e"):
        values = [value for one in seen if (value := getattr(one, f"{name}_s")) is not None]
        for percent in (50, 95):
            milliseconds = float(np.percentile(values, percent)) * 1e3 if values else None
            figures[f"{name}_p{percent}"] = milliseconds
    return figures
