"""What the demo page's timeline shows: pool, queue, tokens, seconds and events over steps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pagetwin.conformance.demo.result import StepPoint
from pagetwin.reports.svg import band_path, element, group, step_path, title

LEFT, RIGHT = 84.0, 14.0
ROW_HEIGHT = 17.0


class Layer(NamedTuple):
    """One band of a stacked panel: CSS class of its fill, and its level at a step."""

    css: str
    level: Callable[[StepPoint], float]


class Panel(NamedTuple):
    """A stacked chart. `limit` draws a dashed line at that level; `layers` go bottom up."""

    name: str
    height: float
    layers: tuple[Layer, ...]
    limit: float | None = None


EVENT_ROWS = (
    ("prefix_hit_tokens", "prefix hit", "tokens found in the prefix cache"),
    ("partial_hits", "partial hit", "partial-block hits"),
    ("cow_copies", "copy on write", "copy-on-write copies"),
    ("evictions", "eviction", "cached blocks evicted"),
    ("preemptions_recompute", "recompute", "sequences preempted by recompute"),
    ("preemptions_swap", "swap", "sequences swapped out"),
    ("aborts", "abort", "requests aborted"),
)
"""(field of StepPoint, label of its row, what it counts)."""


class StepScale(NamedTuple):
    """Where steps [first, end) stand: shared by all figures, so that they line up."""

    first: int
    end: int
    px: float

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) * self.px

    @property
    def width(self) -> float:
        return self.x(self.end) + RIGHT


def step_scale(first: int, end: int) -> StepScale:
    """Wide enough to point at a step, narrow enough to see the run."""
    steps = max(1, end - first)
    return StepScale(first, max(end, first + 1), min(8.0, max(1.5, 960.0 / steps)))


def step_axis(scale: StepScale, top: float, bottom: float) -> Markup:
    """Faint vertical lines at round steps, with their numbers below `bottom`."""
    interval = _round_interval((scale.end - scale.first) / 10)
    start = -(-scale.first // interval) * interval
    marks = []
    for step in range(start, scale.end + 1, interval):
        x = scale.x(step)
        marks.append(element("path", d=f"M{x:.1f} {top:.1f}V{bottom:.1f}", class_="grid"))
        marks.append(element("text", str(step), x=x, y=bottom + 13, class_="tick middle"))
    return group(marks)


def timeline(points: Sequence[StepPoint], panels: Sequence[Panel], scale: StepScale) -> Markup:
    """The panels one above the other, then a row of marks for each kind of event."""
    shown = [point for point in points if scale.first <= point.step < scale.end]
    parts: list[Markup] = []
    top = 8.0
    for panel in panels:
        parts.append(_panel(panel, shown, scale, top))
        top += panel.height + 30
    rows_top = top - 8
    bottom = rows_top + ROW_HEIGHT * len(EVENT_ROWS)
    rows = [
        _event_row(field, (label, meaning), shown, scale, rows_top + index * ROW_HEIGHT)
        for index, (field, label, meaning) in enumerate(EVENT_ROWS)
    ]
    pointers = [_pointer(point, scale, bottom) for point in shown]
    return element(
        "svg",
        element("title", "Pool, queue, tokens, seconds and events of every step", id="timeline-t"),
        step_axis(scale, 4, bottom),
        *parts,
        group(pointers, class_="pointers"),
        *rows,
        role="img",
        aria_labelledby="timeline-t",
        width=scale.width,
        height=bottom + 22,
        viewBox=f"0 0 {scale.width:.0f} {bottom + 22:.0f}",
    )


def _panel(panel: Panel, points: Sequence[StepPoint], scale: StepScale, top: float) -> Markup:
    base = top + 14 + panel.height
    totals = [sum(layer.level(point) for layer in panel.layers) for point in points]
    highest = max([*totals, panel.limit or 0.0]) or 1.0
    xs = [scale.x(point.step) for point in points]
    xs.append(scale.x(points[-1].step + 1) if points else scale.x(scale.first))
    parts = [element("text", panel.name, x=LEFT, y=top + 8, class_="panel-name")]
    lower = [0.0] * len(points)
    for layer in panel.layers if points else ():
        upper = [low + layer.level(point) for low, point in zip(lower, points, strict=True)]
        path = band_path(
            xs, *([base - v / highest * panel.height for v in b] for b in (lower, upper))
        )
        parts.append(element("path", d=path, class_=layer.css))
        lower = upper
    if panel.limit is not None:
        y = base - panel.limit / highest * panel.height
        parts.append(element("path", d=step_path([LEFT, xs[-1]], [y]), class_="limit"))
    parts.append(element("path", d=step_path([LEFT, xs[-1]], [base]), class_="base"))
    for level in (0.0, highest):
        y = base - level / highest * panel.height + 4
        parts.append(element("text", _label(level), x=LEFT - 8, y=y, class_="tick end"))
    return group(parts)


def _event_row(
    field: str, words: tuple[str, str], points: Sequence[StepPoint], scale: StepScale, top: float
) -> Markup:
    label, meaning = words
    middle = top + ROW_HEIGHT / 2
    parts = [
        element("text", label, x=LEFT - 6, y=middle + 3, class_="tick end"),
        element("path", d=f"M{LEFT} {middle}H{scale.x(scale.end):.1f}", class_="grid"),
    ]
    size = max(3.0, min(scale.px, 6.0))
    for point in points:
        count = getattr(point, field)
        if count:
            mark = element(
                "rect",
                title(f"step {point.step}: {count} {meaning}"),
                x=scale.x(point.step) + (scale.px - size) / 2,
                y=middle - 6,
                width=size,
                height=12,
                rx=1.5,
                class_=f"event {field}",
            )
            parts.append(mark)
    return group(parts)


def _pointer(point: StepPoint, scale: StepScale, bottom: float) -> Markup:
    text = (
        f"step {point.step}\n"
        f"blocks: {point.held_blocks} held, {point.cached_free_blocks} free but cached, "
        f"{point.free_blocks} free\n"
        f"sequences: {point.running} running, {point.swapped} swapped out, "
        f"{point.waiting} waiting\n"
        f"tokens: {point.prompt_tokens} prompt, {point.decode_tokens} decode\n"
        f"{point.duration_s * 1000:.1f} ms"
    )
    x = scale.x(point.step)
    return element("rect", title(text), x=x, y=4, width=scale.px, height=bottom - 4)


def _round_interval(steps: float) -> int:
    interval = 1
    while interval < steps:
        for factor in (1, 2, 5):
            if interval * factor >= steps:
                return interval * factor
        interval *= 10
    return interval


def _label(level: float) -> str:
    """A number of an axis: whole from ten on, else with two places at most."""
    return f"{level:,.0f}" if level >= 10 else f"{level:.2g}"
