"""Tables of a report in markdown, for a terminal and for page.md."""

from collections.abc import Mapping, Sequence

from eval.metrics.estimate import Estimate
from eval.report.published import Comparison, Percent
from eval.report.rows import ALL_LENGTHS, Row, group_rows, order_lengths
from internvl import markdown


def format_table(rows: Sequence[Row]) -> str:
    """A line per task and setting, a column per context length, chance at the end."""
    lengths = order_lengths(rows)
    table = [["task", "run", "protocol", *lengths, "chance"]]
    for names, cells in group_rows(rows).items():
        texts = [format_cell(cells[length]) if length in cells else "-" for length in lengths]
        table.append([*names, *texts, format_chance(cells[ALL_LENGTHS].chance)])
    return markdown.format_table(table)


def format_cell(row: Row) -> str:
    """`0.925 [0.880, 0.954] (n 200)`; the count alone where no answer is public, or a judge has yet to score."""
    if row.estimate is None:
        return f"{'needs a judge' if row.needs_judge else 'no answers'} (n {row.count})"
    return format_estimate(row.estimate)


def format_averages(averages: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A line per mean over several tasks, a column per run; nothing where there are no means."""
    names = list_average_names(averages)
    lines = [[name, *(format_estimate(means.get(name)) for means in averages.values())] for name in names]
    return markdown.format_table([["mean", *averages], *lines]) if lines else ""


def list_average_names(averages: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """Names of all means, each once."""
    return list(dict.fromkeys(name for means in averages.values() for name in means))


def format_estimate(estimate: Estimate | None) -> str:
    """`0.925 [0.880, 0.954] (n 200)`, with the 95 % interval, or `-`."""
    return (
        "-" if estimate is None else f"{estimate.score:.3f} {format_interval(estimate.interval)} (n {estimate.count})"
    )


def format_interval(interval: tuple[float, float], *, digits: int = 3, sign: str = "") -> str:
    """`[0.880, 0.954]`; `sign` is `+` for differences."""
    return "[" + ", ".join(f"{bound:{sign}.{digits}f}" for bound in interval) + "]"


def format_comparison(table: Comparison) -> str:
    """A table with its title and notes, in percent; own numbers have their 95 % intervals."""
    lines = [["model", "", *table.columns]]
    for row in table.rows:
        name = f"**{row.name}**" if row.is_own else row.name
        lines.append([name, row.kind, *(format_percent(row.cells.get(column)) for column in table.columns)])
    notes = [f"- {note}" for note in table.all_notes]
    return "\n".join([f"## {table.title}", "", markdown.format_table(lines), "", *notes, ""])


def format_percent(cell: Percent | None) -> str:
    """`73.5`, `73.5 [71.1, 75.8]`, or `-`."""
    if cell is None:
        return "-"
    interval = "" if cell.interval is None else f" {format_interval(cell.interval, digits=1)}"
    return f"{cell.value:.1f}{interval}"


def format_chance(chance: float | None) -> str:
    """A chance level, `?` where it is not known."""
    return "?" if chance is None else f"{chance:.3f}"


def format_p(p_value: float) -> str:
    """`0.034`, `2e-05`, `1`."""
    return f"{p_value:.2g}" if p_value < 0.9995 else "1"
