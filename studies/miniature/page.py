"""The study on one self-contained HTML page: figures and tables, and links to the pages of its seeds."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from eval.report.plots import encode_svg
from eval.report.theme import STYLE, make_policy
from studies.miniature.cells import Cell
from studies.miniature.tables import Table, build_tables


def render_study(cells: Sequence[Cell], figures: Mapping[str, Figure], *, title: str, links: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        cells: The study; its tables.
        figures: Name -> figure, from `make_figures`; those by depth come last, folded.
        title: Heading.
        links: Text -> address of further pages.
    """
    depth = {name: figure for name, figure in figures.items() if "_depth_" in name}
    lines = {name: figure for name, figure in figures.items() if name not in depth}
    seeds = sorted({cell.seed for cell in cells})
    listed = ", ".join(f'<a href="{escape(address)}">{escape(text)}</a>' for text, address in links.items())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{make_policy()}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"<p class=dim>Seeds {', '.join(map(str, seeds))}. Bands are 95 % intervals of a mean over seeds (of one seed, "
        f"of its questions). Methods and evaluations: sh studies/miniature/run.sh --help</p>\n"
        f"{f'<p>Answers and contexts: {listed}</p>' if links else ''}\n"
        f"{_render_figures(lines)}\n{''.join(_render_table(table) for table in build_tables(cells))}\n"
        f"{f'<details><summary>By depth</summary>{_render_figures(depth)}</details>' if depth else ''}"
        "</body></html>\n"
    )


def _render_figures(figures: Mapping[str, Figure]) -> str:
    return "".join(f"<figure>{encode_svg(figure)}</figure>" for figure in figures.values())


def _render_table(table: Table) -> str:
    head = "".join(f"<th>{_render_text(text)}</th>" for text in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{_render_text(text)}</td>' for text in row)}</tr>" for row in table.rows)
    return (
        f"<h2>{_render_text(table.title)}</h2><p class=dim>{_render_text(table.note)}</p><div class=wide><table><thead>"
        f"<tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _render_text(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
