"""What plots show."""

import io

import numpy as np
from PIL import Image

from eval.report.plots import (
    draw_heatmap,
    draw_length_plot,
    draw_stride_plot,
    encode_png,
    encode_svg,
    write_task_plots,
)
from tests.eval.report.results import make_result


def read_png(figure):
    return np.asarray(Image.open(io.BytesIO(encode_png(figure))).convert("RGB"))


def test_heatmap_is_a_picture_that_shows_the_numbers():
    good = draw_heatmap(make_result(accuracy=1.0).headline.by_depth_and_length, title="t")
    bad = draw_heatmap(make_result(accuracy=0.0).headline.by_depth_and_length, title="t")
    first, second = read_png(good), read_png(bad)
    assert min(first.shape[:2]) > 200
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50
    colour = (first.astype(int) - second.astype(int)).reshape(-1, 3)
    assert (np.abs(colour).sum(axis=1) > 100).mean() > 0.1  # green against red


def test_length_plot_shows_one_line_per_setting():
    rows = {name: make_result(accuracy=a).headline.by_length for name, a in (("x", 0.9), ("y", 0.2))}
    both = read_png(draw_length_plot(rows, title="t"))
    one = read_png(draw_length_plot({"x": rows["x"]}, title="t"))
    assert len(np.unique(both.reshape(-1, 3), axis=0)) > len(np.unique(one.reshape(-1, 3), axis=0)) > 50


def test_task_plots_are_written_beside_the_scores(tmp_path):
    write_task_plots(tmp_path, make_result())
    assert {path.name for path in tmp_path.iterdir()} == {"heatmap.png", "accuracy_by_length.png"}
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())


def test_svg_is_the_same_every_time_and_takes_the_colour_of_its_page():
    rows = make_result().headline.by_length
    texts = [encode_svg(draw_length_plot({"<x> & $y$": rows}, title="a $b$ <c>")) for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("<svg")
    assert "currentColor" in texts[0]
    assert "a $b$ &lt;c&gt;" in texts[0]
    assert "&lt;x&gt; &amp; $y$" in texts[0]
    assert "<metadata" not in texts[0]


def test_half_characters_are_drawn_as_a_substitute():
    rows = make_result().headline.by_length
    assert "a?b" in encode_svg(draw_length_plot({"a\ud83db": rows}, title="c\udcffd"))


def test_stride_plot_orders_strides_by_size():
    figure = draw_stride_plot(
        {"all": [(64, 0.5, 10), (0.0625, 0.9, 10), (1, 0.7, 10)]}, title="t", without_stride={"d": 0.1}
    )
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1/16", "1", "64"]
    assert list(axes.lines[0].get_ydata()) == [0.9, 0.7, 0.5]
