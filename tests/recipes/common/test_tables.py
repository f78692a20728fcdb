"""Tables by hand, and read back from their Markdown."""

from __future__ import annotations

from recipes.common.tables import aligned, markdown, shown


def test_columns_are_aligned():
    assert aligned([("", "a"), ("loss", "1.5")]).splitlines() == ["      a", "loss  1.5"]


def test_markdown_escapes_bars():
    assert markdown([("a", "b"), ("1|2", "3")]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1\\|2 | 3 |",
    ]


def test_numbers_stand_to_the_right_under_one_another():
    assert markdown([("GPUs", "x"), ("8", "1,000")], to_the_right=True).splitlines() == [
        "| GPUs |     x |",
        "| ---: | ----: |",
        "|    8 | 1,000 |",
    ]


def test_what_is_missing_is_said():
    assert shown(0.0, "{:.1%}") == "0.0%" and shown(1234.5, "${:,.2f}") == "$1,234.50"
    assert shown(None, "{:.1%}") == "-" and shown(None, "{:g}", "never") == "never"
