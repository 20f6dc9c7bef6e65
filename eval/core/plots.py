"""Plots as PNG bytes: accuracy by needle depth and context length, and by context length for several settings.

Figures are drawn on matplotlib's Agg canvas directly; no global state of pyplot is touched.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.core.report import label_length, label_setting
from eval.core.scoring import wilson_interval
from eval.core.store import write_atomically

EMPTY_COLOR = "#dddddd"
HEATMAP_NAME = "heatmap.png"
LENGTH_PLOT_NAME = "accuracy_by_length.png"


def draw_heatmap(grid: Mapping[str, Any], *, title: str) -> bytes:
    """Accuracy by depth (rows, start of the context on top) and length (columns); cells without samples are grey.

    Args:
        grid: `lengths`, `depths`, and `score_sums` and `counts` as (length, depth) tables.
        title: Title.
    """
    used = [index for index, counts in enumerate(grid["counts"]) if any(counts)]
    columns = range(used[0], used[-1] + 1)
    nan = float("nan")
    image = [
        [grid["score_sums"][c][r] / grid["counts"][c][r] if grid["counts"][c][r] else nan for c in columns]
        for r in range(len(grid["depths"]))
    ]
    figure = Figure(figsize=(2.2 + 0.9 * len(columns), 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(EMPTY_COLOR)
    mesh = axes.imshow(image, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for row, values in enumerate(image):
        for column, value in enumerate(values):
            count = grid["counts"][columns[column]][row]
            text = f"{value:.2f}\nn {count}" if count else "-"
            color = "white" if count and abs(value - 0.5) > 0.38 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), [grid["lengths"][c] for c in columns])
    axes.set_yticks(range(len(grid["depths"])), [f"{depth:.1f}" for depth in grid["depths"]])
    axes.set_xlabel("context length in tokens (left edge of bin)")
    axes.set_ylabel("needle depth (left edge)")
    axes.set_title(title, fontsize=10)
    figure.colorbar(mesh, ax=axes, label="accuracy")
    return _encode_png(figure)


def draw_length_plot(series: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str) -> bytes:
    """Accuracy by length, one line per setting with its 95 % interval (Wilson); chance is dashed.

    Args:
        series: Setting -> rows of `low`, `high`, `score`, `count`, `chance`.
        title: Title.
    """
    lengths = {(row["low"] or 0): label_length(row["low"], row["high"]) for rows in series.values() for row in rows}
    places = {low: place for place, low in enumerate(sorted(lengths))}
    figure = Figure(figsize=(max(5.0, 2.0 + 0.9 * len(places)), 3.8), layout="constrained")
    axes = figure.add_subplot()
    for label, rows in series.items():
        x = [places[row["low"] or 0] for row in rows]
        low, high = zip(*(wilson_interval(row["score"], row["count"]) for row in rows), strict=True)
        (line,) = axes.plot(x, [row["score"] for row in rows], marker="o", label=label)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
    chances = {places[row["low"] or 0]: row["chance"] for rows in series.values() for row in rows}
    if all(chance is not None for chance in chances.values()):
        axes.plot(sorted(chances), [chances[x] for x in sorted(chances)], "k--", linewidth=1, label="chance")
    axes.set_xticks(range(len(places)), [lengths[low] for low in sorted(lengths)])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("context length in tokens")
    axes.set_ylabel("accuracy")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _encode_png(figure)


def write_task_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the plots of one task beside its scores.json, as far as its aggregation gives the numbers."""
    numbers = result["results"][result["protocol"]]
    title = f"{result['task']}, {label_setting(result)}"
    if "by_depth_and_length" in numbers:
        write_atomically(folder / HEATMAP_NAME, draw_heatmap(numbers["by_depth_and_length"], title=title))
    if numbers.get("by_length"):
        plot = draw_length_plot({label_setting(result): numbers["by_length"]}, title=title)
        write_atomically(folder / LENGTH_PLOT_NAME, plot)


def _encode_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
