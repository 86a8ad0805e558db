"""A cost profile as tables: what each term costs, and how well workloads left out are predicted."""

from pagetwin.reports.tables import Table, number
from pagetwin.simulator.costs.profile import Profile


def terms_table(profile: Profile) -> Table:
    """A row per fitted term, in microseconds or nanoseconds of its unit."""
    rows = []
    graph, eager = profile.costs.graph, profile.costs.eager
    if graph is not None:
        for knot, seconds in zip(graph.rise.knots, graph.rise.seconds, strict=True):
            rows.append(["CUDA graph", f"{knot} sequences", f"{number(seconds * 1e6, 4)} us"])
        rows.append(["CUDA graph", "a context token", f"{number(graph.per_context_s * 1e9, 4)} ns"])
        mean = number(graph.per_mean_context_s * 1e9, 4)
        rows.append(["CUDA graph", "a token of the mean context", f"{mean} ns"])
    if eager is not None:
        for knot, seconds in zip(eager.rise.knots, eager.rise.seconds, strict=True):
            rows.append(["other steps", f"{knot} tokens", f"{number(seconds * 1e6, 4)} us"])
        rows.append(["other steps", "launching, at least", f"{number(eager.launch_s * 1e6, 4)} us"])
        rows.append(["other steps", "a query-key pair", f"{number(eager.per_pair_s * 1e12, 4)} ps"])
        rows.append(
            ["other steps", "a context token", f"{number(eager.per_context_s * 1e9, 4)} ns"]
        )
        rows.append(
            ["other steps", "a prefilling sequence", f"{number(eager.per_chunk_s * 1e6)} us"]
        )
        rows.append(["other steps", "a sample", f"{number(eager.per_sample_s * 1e6)} us"])
    return Table(["steps", "term", "cost"], rows, num_left=2)


def cross_validation_table(profile: Profile) -> Table:
    """A row per workload that was left out of the fit."""
    rows = [
        [
            name,
            str(held_out.steps),
            number(held_out.measured_s),
            f"{held_out.total_error:+.2%}",
            f"{held_out.mean_absolute_error:.2%}",
        ]
        for name, held_out in profile.cross_validation.items()
    ]
    columns = ["workload", "steps", "measured s", "total", "a step"]
    return Table(columns, rows)
