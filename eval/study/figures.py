"""Figures of the study: accuracy by length with 95 % intervals, and by depth and length."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eval.core.plots import draw_band_plot, draw_heatmap, encode_png
from eval.core.store import write_atomically
from eval.study.cells import GROUPS, Cell, list_lengths, list_settings, select_cells, summarise
from eval.study.tables import TITLES

# METHOD@EVALUATION
LINES = (
    "default@default",
    "default@default+dynamic-2",
    "default@default+yarn-16",
    "default@stride_1-16",
    "rnd_image@default",
    "rnd_image@stride_1-16",
)
HEATMAPS = ("default@default", "default@stride_1-16", "rnd_image@stride_1-16")


def draw_figures(
    cells: Sequence[Cell],
    folder: Path,
    stem: str,
    *,
    lines: Sequence[str] = LINES,
    heatmaps: Sequence[str] = HEATMAPS,
) -> list[Path]:
    """Draw `STEM_GROUP.png`, and `STEM_GROUP_depth_METHOD@EVALUATION.png` for every heat-map.

    Args:
        cells: The study.
        folder: Where the files go; made when missing.
        stem: How their names begin.
        lines: `METHOD@EVALUATION` of the lines; those that are not there are left out.
        heatmaps: `METHOD@EVALUATION` of the heat-maps, likewise.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = {f"{method}@{evaluation}": (method, evaluation) for method, evaluation in list_settings(cells)}
    figures: dict[str, Figure] = {}
    for group, questions in GROUPS.items():
        drawn = {
            name: members for name in lines if name in there and (members := _select(cells, questions, there[name]))
        }
        if drawn:
            figures[f"{stem}_{group}"] = _draw_lines(drawn, title=TITLES[group])
        for name in heatmaps:
            members = _select(cells, questions, there[name]) if name in there else []
            if members:
                figure = draw_heatmap(_build_grid(members), title=f"{TITLES[group]}, {name}")
                figures[f"{stem}_{group}_depth_{name}"] = figure
    for name, figure in figures.items():
        write_atomically(folder / f"{name}.png", encode_png(figure))
    return [folder / f"{name}.png" for name in figures]


def _select(cells: Sequence[Cell], questions: Sequence[str], setting: tuple[str, str]) -> list[Cell]:
    return select_cells(cells, questions=questions, method=setting[0], evaluation=setting[1])


def _draw_lines(lines: Mapping[str, Sequence[Cell]], *, title: str) -> Figure:
    lengths = list_lengths(cell for members in lines.values() for cell in members)
    return draw_band_plot(
        {name: _draw_points(members) for name, members in lines.items()},
        labels=[f"{length}x" for length in lengths],
        title=title,
        xlabel="length of the context (1x: as in stage 1)",
    )


def _draw_points(cells: Sequence[Cell]) -> dict[str, tuple[float, float, float]]:
    """Label of a length -> (mean, low, high)."""
    points = {}
    for length in list_lengths(cells):
        summary = summarise([cell for cell in cells if cell.length == length])
        points[f"{length}x"] = (summary.mean, summary.low, summary.high)
    return points


def _build_grid(cells: Sequence[Cell]) -> dict[str, Any]:
    """Right answers and questions of all seeds by length and depth, as `draw_heatmap` takes them."""
    lengths = list_lengths(cells)
    num_depths = max(len(cell.depth_counts) for cell in cells)
    by_length = [[cell for cell in cells if cell.length == length] for length in lengths]

    def add_up(name: str) -> list[list[float]]:
        return [[sum(getattr(cell, name)[d] for cell in members) for d in range(num_depths)] for members in by_length]

    return {
        "lengths": [f"{length}x" for length in lengths],
        "depths": [depth / num_depths for depth in range(num_depths)],
        "score_sums": add_up("depth_sums"),
        "counts": add_up("depth_counts"),
    }
