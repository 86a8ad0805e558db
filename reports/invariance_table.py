"""What equal bits cost: the same workloads with and without batch invariance."""

from statistics import geometric_mean

from pagetwin.conformance.bench.offline_result import OfflineReport, OfflineRow
from pagetwin.reports.offline_table import shown_workload
from pagetwin.reports.results import NotComparable
from pagetwin.reports.tables import Table, number


def invariance_table(invariant: OfflineReport, free: OfflineReport) -> Table:
    """A row per model and workload that both ran; a price of +2 % is 1.02 times the seconds.

    Raises NotComparable unless both were measured on one device with the same sources, the first
    batch-invariant and the second not.
    """
    _check(invariant, free)
    without = {_work(row): min(row.seconds) for row in free.rows}
    rows, ratios = [], []
    for row in invariant.rows:
        if _work(row) not in without:
            continue
        seconds, free_seconds = min(row.seconds), without[_work(row)]
        ratios.append(seconds / free_seconds)
        cells = [row.model, shown_workload(row), number(seconds), number(free_seconds)]
        rows.append([*cells, _price(ratios[-1])])
    if not rows:
        raise NotComparable("they have no workload in common")
    rows.append(["geometric mean", "", "", "", _price(geometric_mean(ratios))])
    columns = ["model", "workload", "batch-invariant s", "not s", "price"]
    return Table(columns, rows, num_left=2)


def _check(invariant: OfflineReport, free: OfflineReport) -> None:
    for field in ("device", "sources_sha256", "recorded"):
        one, other = getattr(invariant, field), getattr(free, field)
        if one != other:
            raise NotComparable(f"{field} is {one!r} in the first and {other!r} in the second")
    for report, wanted in ((invariant, True), (free, False)):
        for model, run in report.models.items():
            if run.config["batch_invariant"] is not wanted:
                raise NotComparable(f"{model} ran with batch_invariant={not wanted} in one of them")


def _work(row: OfflineRow) -> tuple[str, str]:
    return row.model, row.workload_sha256


def _price(ratio: float) -> str:
    return f"{ratio - 1:+.1%}"
