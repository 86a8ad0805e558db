"""How a witness is drawn: who holds which block in which step, and the step where it breaks."""

from collections.abc import Sequence

from markupsafe import Markup

from pagetwin.conformance.demo.block_map import block_spans, pool_states
from pagetwin.conformance.history import header, requests
from pagetwin.conformance.properties import Violation
from pagetwin.engine.trace import PlanRecord, Record
from pagetwin.reports.block_map_figure import NUM_COLOURS, ROW, block_map
from pagetwin.reports.svg import element, group, title
from pagetwin.reports.timeline_figure import LEFT, RIGHT, StepScale

STEP = 54.0
"""Width of a step: a name fits."""

_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Okabe and Ito's, which also those tell apart who see fewer colours."""

_STYLE = """
text { font: 10px system-ui, sans-serif; fill: #444; } .middle { text-anchor: middle; }
.end { text-anchor: end; } .grid { stroke: #ddd; fill: none; } .field { fill: #f4f4f2; }
.hatch { stroke: rgba(0, 0, 0, .42); stroke-width: 1.3; fill: none; }
.b text { fill: #111; font-size: 9px; } .b.cached rect { opacity: .3; }
.broken { fill: #b3261e; fill-opacity: .12; stroke: #b3261e; } .message { fill: #b3261e; }
"""


def scenario_figure(records: Sequence[Record], violations: Sequence[Violation] = ()) -> str:
    """A whole SVG file of a short history: rows are blocks, columns steps, colours requests; the
    first violation's step is marked, and what it says stands below."""
    first = header(records)
    index = {request_id: number for number, request_id in enumerate(requests(records))}
    planned = [record.plan.step for record in records if isinstance(record, PlanRecord)]
    scale = StepScale(0, max(planned, default=0) + 1, STEP)
    figure = block_map(block_spans(pool_states(records)), index, first.cache.num_blocks, scale)
    bottom = 8.0 + ROW * (first.cache.num_blocks - 1) + 22
    parts = [element("style", Markup(_STYLE + _colours())), figure, _legend(index, bottom)]
    lines = [str(one) for one in violations[:3]]
    if violations:
        parts.append(_mark(violations[0], scale, bottom))
        parts += [
            element("text", line, x=8, y=bottom + 34 + 14 * row, class_="message")
            for row, line in enumerate(lines)
        ]
    width = max([scale.width, *(16 + 5.6 * len(line) for line in lines), LEFT + 5 * RIGHT])
    svg = element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=bottom + 40 + 14 * len(lines),
    )
    return str(svg) + "\n"


def _mark(found: Violation, scale: StepScale, bottom: float) -> Markup:
    x = scale.x(max(found.step, 0))
    return element(
        "rect", title(str(found)), x=x, y=2, width=STEP, height=bottom - 18, class_="broken"
    )


def _legend(index: dict[str, int], top: float) -> Markup:
    parts = []
    for request_id, number in index.items():
        x = LEFT + 70 * number
        parts.append(
            element("rect", x=x, y=top + 4, width=10, height=10, class_=f"c{number % NUM_COLOURS}")
        )
        parts.append(element("text", request_id, x=x + 14, y=top + 13))
    return group(parts)


def _colours() -> str:
    return "".join(f".c{number} {{ fill: {colour}; }}\n" for number, colour in enumerate(_COLOURS))
