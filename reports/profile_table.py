"""A cost profile as tables: what each term costs, and how well workloads left out are predicted."""

from pagetwin.reports.tables import Table, number
from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.profile import Profile
from pagetwin.simulator.costs.step_costs import HostCosts


def terms_table(profile: Profile) -> Table:
    """A row per fitted term, in microseconds or nanoseconds of its unit."""
    costs = profile.costs
    rows = []
    if costs.graph is not None:
        rows += _products("CUDA graph", costs.graph.products, "sequences")
    if costs.eager is not None:
        rows += _products("other steps", costs.eager.products, "tokens")
        pair = number(costs.eager.per_pair_s * 1e12, 4)
        rows += [
            ["other steps", "a query-key pair", f"{pair} ps"],
            ["other steps", "a prefilling sequence", _us(costs.eager.per_chunk_s)],
            ["other steps", "a sample", _us(costs.eager.per_sample_s)],
            ["other steps", "a token seen", _ns(costs.eager.per_context_s)],
        ]
    context = costs.context
    rows += [
        ["attention", "a token seen", _ns(context.per_token_s)],
        ["attention", "saved if another sees it", f"{context.repeated_share:.0%}"],
        [
            "attention",
            f"a key of the longest run, up to {context.run:,}",
            _ns(context.per_position_s),
        ],
        ["attention", "keys gone through together", str(context.tile)],
    ]
    if costs.graph is not None:
        rows += _host("host, CUDA graph", costs.graph_host)
    rows += _host("host, other steps", costs.eager_host)
    return Table(["part", "term", "cost"], rows, num_left=2)


def _products(part: str, curve: Curve, unit: str) -> list[list[str]]:
    points = zip(curve.knots, curve.seconds, strict=True)
    return [[part, f"{knot:,} {unit}", _us(seconds)] for knot, seconds in points]


def _host(part: str, host: HostCosts) -> list[list[str]]:
    rows = [[part, "launching", _us(host.launch_s)]]
    if host.launches_s:
        shortest, longest = host.launches_s[0], host.launches_s[-1]
        rows.append([part, "launching, as it varies", f"{_us(shortest)} to {_us(longest)}"])
    for when, line in (("before", host.before), ("after", host.after)):
        rows += [
            [part, when, _us(line.constant_s)],
            [part, f"{when}, a decoding sequence", _us(line.per_decode_s)],
            [part, f"{when}, a prefilling sequence", _us(line.per_chunk_s)],
            [part, f"{when}, a prompt token", _ns(line.per_prefill_token_s)],
            [part, f"{when}, a token before a chunk", _ns(line.per_prefix_token_s)],
        ]
    return rows


def _us(seconds: float) -> str:
    return f"{number(seconds * 1e6, 4)} us"


def _ns(seconds: float) -> str:
    return f"{number(seconds * 1e9, 4)} ns"


def cross_validation_table(profile: Profile) -> Table:
    """A row per workload that the fit did not see."""
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
