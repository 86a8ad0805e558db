"""How the block map is drawn: one row a block, one colour a request, time to the right."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from pagetwin.conformance.demo.result import BlockSpan
from pagetwin.reports.svg import element, group, title
from pagetwin.reports.timeline_figure import LEFT, StepScale, step_axis

NUM_COLOURS = 7
ROW = 14.0
MAX_SPANS = 4000
"""More than this many rectangles make a page that phones open slowly."""


def drawable_end(spans: Sequence[BlockSpan], end: int) -> int:
    """The step before which a map of at most MAX_SPANS spans ends."""
    starts = sorted(span.first_step for span in spans)
    return end if len(starts) <= MAX_SPANS else max(1, starts[MAX_SPANS])


def block_map(
    spans: Sequence[BlockSpan], request_index: Mapping[str, int], num_blocks: int, scale: StepScale
) -> Markup:
    """The map of blocks 1..num_blocks-1; `request_index` numbers the requests from 0."""
    top = 8.0
    bottom = top + ROW * (num_blocks - 1)
    rows = []
    for block_id in range(1, num_blocks):
        if block_id % 5 == 0 or block_id == 1:
            y = top + (block_id - 1) * ROW + ROW / 2 + 3
            rows.append(element("text", f"block {block_id}", x=LEFT - 6, y=y, class_="tick end"))
    field = element(
        "rect",
        x=LEFT,
        y=top,
        width=scale.x(scale.end) - LEFT,
        height=bottom - top,
        class_="field",
    )
    drawn = [s for s in spans if s.first_step < scale.end and s.end_step > scale.first]
    return element(
        "svg",
        element("title", "Which request held each block during each step", id="map-t"),
        _hatch(),
        field,
        step_axis(scale, top, bottom),
        *rows,
        *(_span(span, request_index, scale, top) for span in drawn),
        role="img",
        aria_labelledby="map-t",
        width=scale.width,
        height=bottom + 22,
        viewBox=f"0 0 {scale.width:.0f} {bottom + 22:.0f}",
    )


def owner_request(span: BlockSpan) -> str:
    return span.owners[0].rpartition("/")[0]


def describe_span(span: BlockSpan) -> str:
    last = span.end_step - 1
    steps = f"step {last}" if last == span.first_step else f"steps {span.first_step} to {last}"
    if span.state == "cached":
        return f"block {span.block_id}, {steps}: free, still cached; filled by {span.owners[0]}"
    verb = "held by" if len(span.owners) == 1 else f"shared by {len(span.owners)}:"
    return f"block {span.block_id}, {steps}: {verb} {', '.join(span.owners)}"


def _span(
    span: BlockSpan, request_index: Mapping[str, int], scale: StepScale, top: float
) -> Markup:
    requests = {owner.rpartition("/")[0]: None for owner in span.owners}
    indices = [request_index[name] for name in requests if name in request_index]
    colour = indices[0] % NUM_COLOURS if indices else 0
    x = scale.x(max(span.first_step, scale.first))
    width = scale.x(min(span.end_step, scale.end)) - x
    y = top + (span.block_id - 1) * ROW
    box = {"x": x, "y": y + 0.5, "width": max(0.6, width - 0.4), "height": ROW - 1, "rx": 1.5}
    parts = [title(describe_span(span)), element("rect", class_=f"c{colour}", **box)]
    if len(span.owners) > 1:
        parts.append(element("rect", fill="url(#shared)", **box))
    label = owner_request(span)
    if span.state == "held" and width >= 6 * len(label) + 4:
        parts.append(element("text", label, x=x + 3, y=y + ROW - 4, class_=f"t{colour}"))
    marks = " ".join(f"r{index}" for index in indices)
    return group(parts, class_=f"b {span.state} {marks}".rstrip())


def _hatch() -> Markup:
    line = element("path", d="M-1 5L5 -1M3 9L9 3", class_="hatch")
    pattern = element(
        "pattern", line, id="shared", width=8, height=8, patternUnits="userSpaceOnUse"
    )
    return element("defs", pattern)
