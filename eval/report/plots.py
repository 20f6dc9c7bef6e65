"""Plots: accuracy by needle depth and context length, by context length, and by stride.

A plot becomes a PNG file or SVG text, whose text and axes take the page's text colour, light or dark. Figures are drawn
on matplotlib's own canvases, because pyplot keeps global state.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from eval.core.output import write_result
from eval.core.result import DepthGrid, LengthBin, TaskResult
from eval.metrics.estimate import wilson_interval
from eval.report.labels import format_stride, label_setting
from eval.report.rows import ALL_LENGTHS, label_length

INK = "#1b1c1d"  # text and axes; `currentColor` in SVG, so no data may have this colour
EMPTY_COLOR = "#d4d4d4"
HEATMAP_NAME = "heatmap.png"
LENGTH_PLOT_NAME = "accuracy_by_length.png"
_COLORS = ("#3b82f6", "#f97316", "#16a34a", "#d946ef", "#e11d48", "#0891b2", "#a16207", "#7c3aed", "#65a30d", "#64748b")
_LINES = ("-", "--", ":", "-.")


def draw_heatmap(grid: DepthGrid, *, title: str, xlabel: str = "context length in tokens (left edge of bin)") -> Figure:
    """Accuracy by depth (rows, start of the context on top) and length (columns), each with its 95 % interval (Wilson).

    Cells without samples are grey.
    """
    used = [index for index, counts in enumerate(grid.counts) if any(counts)]
    columns = range(used[0], used[-1] + 1)
    depths = range(len(grid.depths))
    figure, axes = _make_axes(max(6.0, 1.2 + 0.6 * len(columns)), title, height=3.6)
    axes.patch.set_alpha(1)
    axes.set_facecolor(EMPTY_COLOR)
    nan = float("nan")
    image = [[grid.score_sums[c][r] / grid.counts[c][r] if grid.counts[c][r] else nan for c in columns] for r in depths]
    mesh = axes.pcolormesh(image, vmin=0, vmax=1, cmap="RdYlGn", edgecolors="face", linewidth=0.4)
    axes.invert_yaxis()
    for row, values in enumerate(image):
        for column, value in enumerate(values):
            count = grid.counts[columns[column]][row]
            text = "-"
            if count:
                low, high = wilson_interval(value, count)
                text = f"{value:.2f}\n{low:.2f}-{high:.2f}\nn {count}"
            color = "white" if count and abs(value - 0.5) > 0.38 else "black"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(
        [place + 0.5 for place in range(len(columns))], [_escape(grid.lengths[c]) for c in columns], fontsize=8
    )
    axes.set_yticks([row + 0.5 for row in depths], [f"{depth:.1f}" for depth in grid.depths])
    axes.set_xlabel(xlabel)
    axes.set_ylabel("needle depth (left edge)")
    bar = figure.colorbar(mesh, ax=axes)
    bar.ax.tick_params(colors=INK)
    return figure


def draw_length_plot(series: Mapping[str, Sequence[LengthBin]], *, title: str) -> Figure:
    """Accuracy by length, one line per setting with its 95 % interval (Wilson); chance is dashed."""
    entries = [entry for bins in series.values() for entry in bins]
    lengths = {(entry.low or 0): label_length(entry.low, entry.high) for entry in entries}
    places = {low: place for place, low in enumerate(sorted(lengths))}
    figure, axes = _make_axes(max(6.5, 3.5 + 0.7 * len(places)), title)
    for index, (label, bins) in enumerate(series.items()):
        x = [places[entry.low or 0] for entry in bins]
        low, high = zip(*(entry.estimate.interval for entry in bins), strict=True)
        _draw_line(axes, index, label, x, [entry.score for entry in bins], low, high)
    chances = {places[entry.low or 0]: entry.chance for entry in entries if entry.chance is not None}
    if len(chances) == len(places):
        axes.plot(sorted(chances), [chances[x] for x in sorted(chances)], "--", color=INK, linewidth=1, label="chance")
    axes.set_xticks(range(len(places)), [lengths[low] for low in sorted(lengths)])
    axes.set_xlabel("context length in tokens")
    return _finish_accuracy(figure, axes)


def draw_band_plot(
    series: Mapping[str, Mapping[str, tuple[float, float, float]]], *, labels: Sequence[str], title: str, xlabel: str
) -> Figure:
    """Accuracy by length with known intervals, one line per setting.

    `series`: setting -> label of a length -> `(accuracy, low, high)`; `labels`: of the axis, in order.
    """
    figure, axes = _make_axes(max(6.5, 3.5 + 0.7 * len(labels)), title)
    for index, (name, points) in enumerate(series.items()):
        y, low, high = zip(*points.values(), strict=True)
        _draw_line(axes, index, name, [labels.index(label) for label in points], y, low, high)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel(xlabel)
    return _finish_accuracy(figure, axes)


def draw_band_panels(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]],
    *,
    labels: Sequence[str],
    title: str,
    xlabel: str,
    columns: int = 3,
) -> Figure:
    """`draw_band_plot` in small multiples that share axes and legend, `columns` side by side.

    `panels`: title -> setting -> label of a length -> `(accuracy, low, high)`. A setting has one colour in all panels.
    """
    columns = min(columns, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 + 2.6 * columns, 0.8 + 2.2 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    settings = list(dict.fromkeys(name for series in panels.values() for name in series))
    handles: dict[str, Artist] = {}
    for axes, (panel, series) in zip(grid, panels.items(), strict=False):
        _dress_axes(axes, panel)
        for name, points in series.items():
            y, low, high = zip(*points.values(), strict=True)
            x = [labels.index(label) for label in points]
            handles[name] = _draw_line(axes, settings.index(name), name, x, y, low, high)
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:  # the last one of every column
        axes.tick_params(labelbottom=True)
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=10, color=INK)  # clear of the legend
    figure.supxlabel(xlabel, fontsize=9, color=INK)
    figure.supylabel("accuracy", fontsize=9, color=INK)
    figure.legend(
        [handles[name] for name in settings], settings, loc="outside right upper", fontsize=8, framealpha=0,
        labelcolor=INK,
    )  # fmt: skip
    return figure


def draw_stride_plot(
    series: Mapping[str, Sequence[tuple[float, float, int]]], *, title: str, without_stride: Mapping[str, float]
) -> Figure:
    """Accuracy by stride, one line per context length, and the 95 % interval (Wilson) of all lengths.

    `series`: length label (or `all`) -> `(stride, score, count)`. `without_stride`: setting without a stride -> score
    over all lengths, drawn as a horizontal line.
    """
    strides = sorted({stride for rows in series.values() for stride, _, _ in rows})
    places = {stride: place for place, stride in enumerate(strides)}
    figure, axes = _make_axes(max(5.5, 3.0 + 0.7 * len(strides)), title)
    for index, (label, rows) in enumerate(series.items()):
        rows = sorted(rows)
        x, y = [places[stride] for stride, _, _ in rows], [score for _, score, _ in rows]
        if label == ALL_LENGTHS:
            low, high = zip(*(wilson_interval(score, count) for _, score, count in rows), strict=True)
            axes.fill_between(x, low, high, color=INK, alpha=0.15, linewidth=0)
            axes.plot(x, y, marker="o", color=INK, linewidth=2.5, label=_escape(label))
        else:
            color = colormaps["plasma"](0.15 + 0.7 * index / max(1, len(series) - 1))
            axes.plot(x, y, marker="o", markersize=4, color=color, linewidth=1.2, label=_escape(label))
    for index, (label, score) in enumerate(without_stride.items()):
        axes.axhline(score, linestyle=_LINES[(2 + index) % len(_LINES)], color=INK, linewidth=1, label=_escape(label))
    axes.set_xticks(range(len(strides)), [format_stride(stride) for stride in strides])
    axes.set_xlabel("stride (positions that one tile spans)")
    return _finish_accuracy(figure, axes)


def write_task_plots(folder: Path, result: TaskResult) -> None:
    """Write the plots of one task beside its scores.json, as far as it has lengths and depths."""
    scores, label = result.headline, label_setting(result.settings)
    title = f"{result.task}, {label}"
    if scores.by_depth_and_length is not None:
        write_result(folder / HEATMAP_NAME, encode_png(draw_heatmap(scores.by_depth_and_length, title=title)))
    if scores.by_length:
        plot = draw_length_plot({label: scores.by_length}, title=title)
        write_result(folder / LENGTH_PLOT_NAME, encode_png(plot))


def encode_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def encode_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page: the same every time, without background, in the page's colour."""
    buffer = io.BytesIO()
    figure.patch.set_alpha(0)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "plot"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # names of groups, the same in every figure
    return text.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")


def _make_axes(width: float, title: str, *, height: float = 3.6) -> tuple[Figure, Axes]:
    """Axes in ink; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _dress_axes(axes, title)
    return figure, axes


def _dress_axes(axes: Axes, title: str) -> None:
    axes.patch.set_alpha(0)
    axes.set_title(_escape(title), fontsize=9, color=INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(INK)


def _draw_line(
    axes: Axes,
    index: int,
    label: str,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
) -> Artist:
    color = _COLORS[index % len(_COLORS)]
    style = _LINES[index // len(_COLORS) % len(_LINES)]
    (line,) = axes.plot(x, y, style, marker="o", markersize=4, color=color, label=_escape(label))
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    return line


def _escape(text: str) -> str:
    """The text without formulas, and with `?` for half characters (of file names, say), which fonts cannot take."""
    return text.encode(errors="replace").decode().replace("$", r"\$")


def _finish_accuracy(figure: Figure, axes: Axes) -> Figure:
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, framealpha=0, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return figure
