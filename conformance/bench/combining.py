"""Puts offline results of several models together, as if one run had measured them all."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from pagetwin.conformance.bench.offline_result import OfflineReport
from pagetwin.engine.errors import ConfigError

PER_MODEL = ("models", "rows", "online")


def combined(reports: Sequence[OfflineReport]) -> OfflineReport:
    """One report of all, in their order.

    Raises ConfigError if they differ in anything but their models (device, sources, versions,
    seed, whether recorded), or if two of them hold the same model: its start-up would be that of
    one and its rows of both.
    """
    first = reports[0]
    for other in reports[1:]:
        for field in first.__struct_fields__:
            one, its = getattr(first, field), getattr(other, field)
            if field not in PER_MODEL and one != its:
                raise ConfigError(
                    f"results of {', '.join(first.models)} and {', '.join(other.models)} are not "
                    f"of one run: {field} is {one!r} and {its!r}; measure again with the same"
                )
    counts = Counter(name for report in reports for name in report.models)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ConfigError(
            f"two results hold {', '.join(twice)}; measure all workloads of a model in one run"
        )
    return msgspec.structs.replace(
        first,
        models={name: run for report in reports for name, run in report.models.items()},
        rows=tuple(row for report in reports for row in report.rows),
        online=tuple(row for report in reports for row in report.online),
    )
