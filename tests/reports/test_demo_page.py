"""The demo's page: complete in one file, well-formed, honest about what it was given."""

import re
from html.parser import HTMLParser

import msgspec
import pytest

from pagetwin.conformance.demo.result import BlockSpan, DemoResult, Difference, concluded
from pagetwin.reports.block_map_figure import MAX_SPANS, describe_span
from pagetwin.reports.demo_page import render_demo_page, verdict

VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = "</style></title><script>alert('1')</script>\"'&{{ 7 * 7 }}"


class Outline(HTMLParser):
    """Tags, ids, headings and text of a page; fails on a tag that is closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("aria-labelledby", "href", "src"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_well_formed_and_its_references_lead_somewhere(demo_result: DemoResult) -> None:
    outline = Outline(render_demo_page(demo_result))
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.references) <= set(outline.ids)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    jumps = zip(outline.headings, outline.headings[1:], strict=False)
    assert all(later <= earlier + 1 for earlier, later in jumps)


def test_the_page_needs_no_network_and_no_script(demo_result: DemoResult) -> None:
    page = render_demo_page(demo_result)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    assert not {"script", "link", "img", "iframe"} & set(Outline(page).tags)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_every_table_has_named_columns_and_every_figure_a_title(demo_result: DemoResult) -> None:
    page = render_demo_page(demo_result)
    tables = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert len(tables) >= 5
    assert all('<th scope="col"' in table for table in tables)
    figures = re.findall(r'<svg role="img".*?</svg>', page, re.DOTALL)
    assert len(figures) == 2
    assert all("aria-labelledby" in figure for figure in figures)


def test_hostile_strings_stay_text(demo_result: DemoResult) -> None:
    replace = msgspec.structs.replace
    hostile = replace(
        demo_result,
        summary=replace(
            demo_result.summary, model=HOSTILE, trace=HOSTILE, machine={HOSTILE: HOSTILE}
        ),
        parity=tuple(replace(row, output_text=HOSTILE) for row in demo_result.parity[:1]),
        requests=(replace(demo_result.requests[0], request_id=HOSTILE), *demo_result.requests),
        spans=(BlockSpan(1, 0, 90, "held", (f"{HOSTILE}/0",)),),
        differences=(
            Difference(what=HOSTILE, where=HOSTILE, engine=HOSTILE, other=HOSTILE, other_side="x"),
        ),
        command=HOSTILE,
    )
    outline = Outline(render_demo_page(hostile))
    assert "script" not in outline.tags
    assert outline.tags.count("style") == 1
    assert sum(HOSTILE in text for text in outline.text) >= 8


def test_an_agreeing_run_says_so_with_its_numbers(demo_result: DemoResult) -> None:
    page = render_demo_page(demo_result)
    assert "agree: 4,210 decisions, 1,204 block tables and 411 greedy tokens" in page
    assert "First differences" not in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decision_differences": 1}, "differ in 1 decision."),
        ({"block_table_differences": 2, "counter_differences": 1}, "2 block tables and 1 counter"),
        ({"token_mismatches": 3}, "Hugging Face differ in 3 tokens."),
        ({"invariant_violations": 1}, "1 invariant is broken."),
        ({"partial_hits": 0}, "did not exercise everything"),
    ],
)
def test_a_run_that_failed_never_says_agree(
    demo_result: DemoResult, changes: dict[str, int], words: str
) -> None:
    summary = concluded(msgspec.structs.replace(demo_result.summary, **changes))
    assert not summary.agreed
    assert words in verdict(summary)
    assert " agree:" not in verdict(summary)
    result = msgspec.structs.replace(demo_result, summary=summary)
    assert 'class="verdict bad"' in render_demo_page(result)


def test_the_first_difference_is_shown_with_both_sides(demo_result: DemoResult) -> None:
    difference = Difference(
        what="scheduled[0]", where="step 3", engine="64", other="63", other_side="twin"
    )
    summary = concluded(msgspec.structs.replace(demo_result.summary, decision_differences=1))
    result = msgspec.structs.replace(demo_result, summary=summary, differences=(difference,))
    text = " ".join(" ".join(Outline(render_demo_page(result)).text).split())
    assert "first difference, at step 3: scheduled[0]" in text
    assert "First differences" in text


def test_a_run_without_steps_still_has_a_page(demo_result: DemoResult) -> None:
    empty = msgspec.structs.replace(
        demo_result, steps=(), spans=(), parity=(), requests=(), differences=(), checks=()
    )
    Outline(render_demo_page(empty))


def test_a_long_run_stays_below_two_megabytes(demo_result: DemoResult) -> None:
    steps = tuple(
        msgspec.structs.replace(demo_result.steps[step % 200], step=step) for step in range(3000)
    )
    spans = tuple(
        BlockSpan(1 + step % 40, step, step + 30, "held", ("r01/0", "r02/0"))
        for step in range(2900)
        for _ in range(4)
    )
    assert len(spans) > MAX_SPANS
    page = render_demo_page(msgspec.structs.replace(demo_result, steps=steps, spans=spans))
    assert len(page.encode()) < 2_000_000
    assert "of 3000 are drawn" in page


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (BlockSpan(3, 5, 6, "held", ("a/0",)), "block 3, step 5: held by a/0"),
        (BlockSpan(3, 5, 8, "held", ("a/0", "b/0")), "steps 5 to 7: shared by 2: a/0, b/0"),
        (BlockSpan(3, 5, 8, "cached", ("a/0",)), "free, still cached; filled by a/0"),
    ],
)
def test_a_span_tells_who_and_when(span: BlockSpan, words: str) -> None:
    assert words in describe_span(span)
