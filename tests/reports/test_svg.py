"""SVG elements: well-formed and escaped whatever they are given."""

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from pagetwin.reports.svg import band_path, element, number, step_path, title

# XML has no way to write most control characters; a report has none in it.
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")))


@given(text=texts, attribute=texts)
def test_any_text_comes_back_as_it_was(text: str, attribute: str) -> None:
    root = ElementTree.fromstring(element("g", title(text), data_note=attribute))
    assert (root[0].text or "") == text
    assert root.attrib["data-note"] == attribute


@given(st.floats(-1e6, 1e6))
def test_numbers_keep_a_hundredth_and_are_short(value: float) -> None:
    text = number(value)
    assert abs(float(text) - value) <= 0.0051
    assert "." not in text or not text.endswith("0")
    assert text != "-0"


def test_an_absent_attribute_is_left_out() -> None:
    assert element("rect", x=1.0, rx=None, class_="b") == '<rect x="1" class="b"/>'


def test_a_staircase_joins_equal_levels() -> None:
    assert step_path([0, 1, 2, 3], [5, 5, 7]) == "M0 5H2V7H3"


def test_a_band_runs_there_on_top_and_back_below() -> None:
    assert band_path([0, 1, 2], [9, 8], [5, 5]) == "M0 5H2L2 8H1V9H0Z"
