"""Markdown tables, for reports, plans and documents."""

from collections.abc import Sequence


def format_table(lines: Sequence[Sequence[str]], *, is_padded: bool = True) -> str:
    """A markdown table; the first line is the header.

    Args:
        lines: Cells of every line, each line as many.
        is_padded: Align the columns for a terminal. Documents are better without: a longer cell then changes one line.
    """
    table = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    widths = [max(len(line[i]) for line in table) if is_padded else 0 for i in range(len(table[0]))]
    head, *body = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in table]
    rule = "|".join("-" * (width + 2) if is_padded else " --- " for width in widths)
    return "\n".join([head, f"|{rule}|", *body])
