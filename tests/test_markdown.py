"""Markdown tables, aligned for a terminal or plain for documents."""

from internvl.markdown import format_table

LINES = (["model", "score"], ["a|b\nc", "1"])


def test_padded_tables_have_straight_columns():
    assert format_table(LINES).splitlines() == ["| model  | score |", "|--------|-------|", "| a\\|b c | 1     |"]


def test_plain_tables_have_no_spaces_to_change():
    assert format_table(LINES, is_padded=False).splitlines() == [
        "| model | score |",
        "| --- | --- |",
        "| a\\|b c | 1 |",
    ]
