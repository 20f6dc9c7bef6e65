"""Tables in markdown."""

from eval.report.labels import name_runs
from eval.report.published import ComparedRow, Comparison, Percent
from eval.report.rows import tabulate
from eval.report.tables import format_comparison, format_table
from tests.eval.report.results import make_result


def test_table_has_a_row_per_setting_and_a_column_per_length():
    results = [make_result(), make_result("default", None, 0.25)]
    table = format_table(tabulate(results, name_runs(results)))
    lines = table.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "task", "run", "protocol", "100-200", "200-400", "400+", "all", "chance",
    ]  # fmt: skip
    assert "V2PE stride 1" in lines[2]
    assert "0.750 [0.531, 0.888] (n 20)" in lines[2]
    assert "| default positions " in lines[3]
    assert lines[3].rstrip(" |").endswith("0.100")


def test_cells_cannot_break_a_markdown_table():
    row = ComparedRow("a|b\nc", "2B", {"X": Percent(50.0)})
    own = ComparedRow("mine", "rule", {"X": Percent(51.25, (48.0, 54.5))}, is_own=True)
    text = format_comparison(Comparison("T", ("X", "Y"), (row, own), ("a note",)))
    assert "a\\|b c" in text
    assert "51.2 [48.0, 54.5]" in text
    assert "**mine**" in text
    assert "- a note" in text
