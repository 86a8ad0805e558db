"""Charts of one quantity over another: lines, steps and points on axes with round numbers."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pagetwin.reports.svg import element, group, number, title

WIDTH, HEIGHT = 560.0, 250.0
# Left of the axis stand its name and numbers of up to nine characters.
LEFT, RIGHT, TOP, BOTTOM = 78.0, 26.0, 14.0, 42.0


class Line(NamedTuple):
    """Points joined in order; `css` is the class of its stroke, `name` what a pointer sees."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]


class Dot(NamedTuple):
    x: float
    y: float
    css: str
    text: str


class Axis(NamedTuple):
    name: str
    is_log: bool = False
    low: float | None = None
    """Where it begins; None: at the least value."""
    high: float | None = None
    """Where it ends, at least; None: at the next round number above the greatest value."""


def xy_chart(
    name: str, x: Axis, y: Axis, lines: Sequence[Line] = (), dots: Sequence[Dot] = ()
) -> Markup:
    """One SVG. On a logarithmic axis values that are not positive are left out."""
    lines = [line._replace(points=_drawable(line.points, x, y)) for line in lines]
    dots = [dot for dot in dots if _drawable([(dot.x, dot.y)], x, y)]
    xs = [px for line in lines for px, _ in line.points] + [dot.x for dot in dots]
    ys = [py for line in lines for _, py in line.points] + [dot.y for dot in dots]
    if not xs:
        return element("p", f"{name}: nothing to draw")
    to_x, x_ticks = _scale(x, xs, LEFT, WIDTH - RIGHT)
    to_y, y_ticks = _scale(y, ys, HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x_ticks, y_ticks, to_x, to_y), *_names(x, y)]
    for line in lines:
        path = "L".join(f"{number(to_x(px))} {number(to_y(py))}" for px, py in line.points)
        if path:
            parts.append(element("path", title(line.name), d=f"M{path}", class_=f"line {line.css}"))
    for dot in dots:
        mark = element(
            "circle", title(dot.text), cx=to_x(dot.x), cy=to_y(dot.y), r=5, class_=dot.css
        )
        parts.append(mark)
    return element(
        "svg",
        title(name),
        *parts,
        role="img",
        aria_label=name,
        class_="xy",
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
    )


def cdf(values: Sequence[float], num_points: int = 120) -> list[tuple[float, float]]:
    """The share of the values at or below each of some of them, ascending; `values` sorted."""
    count = len(values)
    places = sorted({round(i * (count - 1) / num_points) for i in range(num_points + 1)})
    return [(float(values[place]), (place + 1) / count) for place in places] if count else []


def _drawable(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> list[tuple[float, float]]:
    return [
        (px, py)
        for px, py in points
        if math.isfinite(px)
        and math.isfinite(py)
        and not (x.is_log and px <= 0)
        and not (y.is_log and py <= 0)
    ]


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """Where a value stands, in pixels, and the round values that are marked."""
    low, high = min(values), max(values)
    low = low if axis.low is None else min(axis.low, low)
    high = high if axis.high is None else max(axis.high, high)
    step = 1.0
    if axis.is_log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)
        last = max(last, first + 1)
        ticks = [10.0**power for power in range(first, last + 1)]
    else:
        step = _round_step((high - low or abs(high) or 1.0) / 5)
        above = 0.0 if axis.high == high else 1e-9
        first, last = math.floor(low / step), math.ceil(high / step + above)
        last = max(last, first + 1)
        ticks = [place * step for place in range(first, last + 1)]

    def place_of(value: float) -> float:
        at = math.log10(value) if axis.is_log else value / step
        return start + (at - first) / (last - first) * (end - start)

    return place_of, ticks


def _grid(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
) -> list[Markup]:
    parts = []
    for tick in x_ticks:
        at = number(to_x(tick))
        parts.append(element("path", d=f"M{at} {TOP}V{HEIGHT - BOTTOM}", class_="grid"))
        below = HEIGHT - BOTTOM + 14
        parts.append(element("text", _label(tick), x=to_x(tick), y=below, class_="tick middle"))
    for tick in y_ticks:
        at = number(to_y(tick))
        parts.append(element("path", d=f"M{LEFT} {at}H{WIDTH - RIGHT}", class_="grid"))
        label = element("text", _label(tick), x=LEFT - 6, y=to_y(tick) + 4, class_="tick end")
        parts.append(label)
    return [group(parts)]


def _names(x: Axis, y: Axis) -> list[Markup]:
    return [
        element("text", x.name, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8, class_="tick middle"),
        element(
            "text",
            y.name,
            transform=f"translate(13 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)",
            class_="tick middle",
        ),
    ]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _label(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
