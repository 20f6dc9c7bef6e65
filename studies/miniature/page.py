"""The study on one self-contained HTML page: figures and tables, and links to the pages of its seeds."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from eval.report.rendering import embed, render
from studies.miniature.cells import Cell
from studies.miniature.tables import build_tables


def render_study(cells: Sequence[Cell], figures: Mapping[str, Figure], *, title: str, links: Mapping[str, str]) -> str:
    """The whole page: the tables of `cells`, then `figures` (those by depth come last, folded).

    `links`: text -> address of further pages.
    """
    return render(
        "study.html.j2",
        package="studies.miniature",
        title=title,
        seeds=sorted({cell.seed for cell in cells}),
        links=links,
        tables=build_tables(cells),
        line_figures=[embed(figure) for name, figure in figures.items() if "_depth_" not in name],
        depth_figures=[embed(figure) for name, figure in figures.items() if "_depth_" in name],
    )
