"""A table as text and as Markdown."""

import pytest

from pagetwin.reports.tables import Table, number

TABLE = Table(["what", "us"], [["decode", "1.5"], ["prefill of all", "12"]])


def test_text_is_aligned_words_left_and_numbers_right() -> None:
    assert TABLE.text().splitlines() == [
        "what             us",
        "decode          1.5",
        "prefill of all   12",
    ]


def test_markdown_says_which_columns_are_numbers() -> None:
    assert TABLE.markdown().splitlines() == [
        "| what | us |",
        "| --- | ---: |",
        "| decode | 1.5 |",
        "| prefill of all | 12 |",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.000"),
        (0.01234, "0.012"),
        (0.5, "0.500"),
        (1.234, "1.23"),
        (9.5, "9.50"),
        (9.999, "10.00"),
        (12.345, "12.3"),
        (123.45, "123"),
        (18744.6, "18,745"),
        (None, ""),
    ],
)
def test_numbers_have_three_digits_and_all_that_stand_before_the_point(
    value: float | None, shown: str
) -> None:
    assert number(value) == shown
