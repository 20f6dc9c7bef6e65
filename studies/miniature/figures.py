"""Figures of the study: accuracy by length with 95 % intervals, and by depth and length."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from eval.core.output import write_result
from eval.core.result import DepthGrid
from eval.report.plots import draw_band_panels, draw_band_plot, draw_heatmap, encode_png
from studies.miniature.cells import GROUPS, OWN, Cell, list_lengths, list_settings, select_cells, summarise
from studies.miniature.tables import TITLES

# METHOD@EVALUATION
LINES = (
    "default@default",
    "default@default+dynamic-2",
    "default@default+yarn-16",
    "default@stride_1-16",
    "rnd_image@default",
    "rnd_image@stride_1-16",
)
XLABEL = "length of the context (1x: as in stage 1)"
HEATMAPS = ("default@default", "default@stride_1-16", "rnd_image@stride_1-16")


def make_figures(
    cells: Sequence[Cell], stem: str, *, lines: Sequence[str] = LINES, heatmaps: Sequence[str] = HEATMAPS
) -> dict[str, Figure]:
    """Figures `STEM_GROUP`, `STEM_GROUP_by_method`, `STEM_GROUP_own` and `STEM_GROUP_depth_METHOD@EVALUATION`.

    The second has a panel per method and a line per evaluation without options, the third a panel per evaluation with
    own positions (`own`, `own+yarn-16`, ...) and a line per method. `lines` and `heatmaps` are `METHOD@EVALUATION`;
    those without cells are left out.
    """
    there = {f"{method}@{evaluation}": (method, evaluation) for method, evaluation in list_settings(cells)}
    figures: dict[str, Figure] = {}
    for group, questions in GROUPS.items():
        drawn = {
            name: members for name in lines if name in there and (members := _select(cells, questions, there[name]))
        }
        if drawn:
            figures[f"{stem}_{group}"] = _draw_lines(drawn, title=TITLES[group])
        panels = _group_by_method(cells, questions)
        if panels:
            figures[f"{stem}_{group}_by_method"] = _draw_panels(panels, title=f"{TITLES[group]}: asked with")
        panels = _group_by_own_evaluation(cells, questions)
        if panels:
            figures[f"{stem}_{group}_own"] = _draw_panels(panels, title=f"{TITLES[group]}: trained with")
        for name in heatmaps:
            members = _select(cells, questions, there[name]) if name in there else []
            if members:
                figure = draw_heatmap(_build_grid(members), title=f"{TITLES[group]}, {name}", xlabel=XLABEL)
                figures[f"{stem}_{group}_depth_{name}"] = figure
    return figures


def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write PNG files into a folder, which is made when it is missing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / f"{name}.png": figure for name, figure in figures.items()}
    for path, figure in paths.items():
        write_result(path, encode_png(figure))
    return list(paths)


def _select(cells: Sequence[Cell], questions: Sequence[str], setting: tuple[str, str]) -> list[Cell]:
    return select_cells(cells, questions=questions, method=setting[0], evaluation=setting[1])


def _draw_lines(lines: Mapping[str, Sequence[Cell]], *, title: str) -> Figure:
    lengths = list_lengths(cell for members in lines.values() for cell in members)
    return draw_band_plot(
        {name: _draw_points(members) for name, members in lines.items()},
        labels=[f"{length}x" for length in lengths],
        title=title,
        xlabel=XLABEL,
    )


def _group_by_method(cells: Sequence[Cell], questions: Sequence[str]) -> dict[str, dict[str, Sequence[Cell]]]:
    """Title of a method -> evaluation without options -> its cells."""
    panels: dict[str, dict[str, Sequence[Cell]]] = {}
    for method, evaluation in list_settings(cells):
        members = _select(cells, questions, (method, evaluation))
        if members and "+" not in evaluation and evaluation != OWN:
            panels.setdefault(f"trained with {method}", {})[evaluation] = members
    return panels


def _group_by_own_evaluation(cells: Sequence[Cell], questions: Sequence[str]) -> dict[str, dict[str, Sequence[Cell]]]:
    """Title of an evaluation with own positions -> method -> its cells."""
    panels: dict[str, dict[str, Sequence[Cell]]] = {}
    for method, evaluation in list_settings(cells):
        members = _select(cells, questions, (method, evaluation))
        if members and evaluation.partition("+")[0] == OWN:
            panels.setdefault(f"asked with {evaluation}", {})[method] = members
    return panels


def _draw_panels(panels: Mapping[str, Mapping[str, Sequence[Cell]]], *, title: str) -> Figure:
    members = [cell for lines in panels.values() for cells in lines.values() for cell in cells]
    return draw_band_panels(
        {panel: {name: _draw_points(cells) for name, cells in lines.items()} for panel, lines in panels.items()},
        labels=[f"{length}x" for length in list_lengths(members)],
        title=title,
        xlabel=XLABEL,
    )


def _draw_points(cells: Sequence[Cell]) -> dict[str, tuple[float, float, float]]:
    """Label of a length -> (mean, low, high)."""
    points = {}
    for length in list_lengths(cells):
        summary = summarise([cell for cell in cells if cell.length == length])
        points[f"{length}x"] = (summary.mean, summary.low, summary.high)
    return points


def _build_grid(cells: Sequence[Cell]) -> DepthGrid:
    """Right answers and questions of all seeds by length and depth."""
    lengths = list_lengths(cells)
    depths = range(max(len(cell.depth_counts) for cell in cells))
    members = [[cell for cell in cells if cell.length == length] for length in lengths]
    return DepthGrid(
        lengths=[f"{length}x" for length in lengths],
        depths=[depth / len(depths) for depth in depths],
        score_sums=[[sum(cell.depth_sums[depth] for cell in own) for depth in depths] for own in members],
        counts=[[sum(cell.depth_counts[depth] for cell in own) for depth in depths] for own in members],
    )
