import io
import json

import numpy as np
import pytest
from PIL import Image

from eval.core.page import render_page
from eval.core.plots import draw_heatmap, draw_length_plot, write_task_plots
from eval.core.report import find_results, format_table, label_length, label_settings, tabulate
from eval.core.task import Scored
from eval.report import main
from eval.tasks.mm_niah import aggregate
from internvl.errors import EvalError


def make_result(version="v2pe_fix", stride=1, accuracy=0.75, task="mm_niah/retrieval-text-test", checkpoint="abc"):
    scored = [
        Scored(float(i % 20 < accuracy * 20), {"context_length": length, "placed_depth": (i % 10) / 10, "chance": 0.1})
        for length in (150, 300, 700)
        for i in range(20)
    ]
    numbers = {
        "score": accuracy,
        "stderr": 0.05,
        "count": 60,
        "num_failed": 0,
        "num_empty": 1,
        "chance": 0.1,
        **aggregate(scored, (100, 200, 400)),
    }
    settings = {"rope_pos_id_version": version, "rope_pos_id_stride": stride, "checkpoint": checkpoint}
    return {
        "task": task,
        "version": 1,
        "source": "https://example.org/<data>",
        "protocol": "official",
        "settings": settings,
        "info": {"checkpoint": f"/runs/{checkpoint}"},
        "results": {"official": numbers},
    }


def read_png(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_heatmap_is_a_picture_that_shows_the_numbers():
    good = draw_heatmap(make_result(accuracy=1.0)["results"]["official"]["by_depth_and_length"], title="t")
    bad = draw_heatmap(make_result(accuracy=0.0)["results"]["official"]["by_depth_and_length"], title="t")
    first, second = read_png(good), read_png(bad)
    assert min(first.shape[:2]) > 200
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50
    colour = (first.astype(int) - second.astype(int)).reshape(-1, 3)
    assert (np.abs(colour).sum(axis=1) > 100).mean() > 0.1  # green against red


def test_length_plot_shows_one_line_per_setting():
    rows = {name: make_result(accuracy=a)["results"]["official"]["by_length"] for name, a in (("x", 0.9), ("y", 0.2))}
    both = read_png(draw_length_plot(rows, title="t"))
    one = read_png(draw_length_plot({"x": rows["x"]}, title="t"))
    assert len(np.unique(both.reshape(-1, 3), axis=0)) > len(np.unique(one.reshape(-1, 3), axis=0)) > 50


def test_task_plots_are_written_beside_the_scores(tmp_path):
    write_task_plots(tmp_path, make_result())
    assert {path.name for path in tmp_path.iterdir()} == {"heatmap.png", "accuracy_by_length.png"}
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())


def test_table_has_a_row_per_setting_and_a_column_per_length():
    table = format_table(tabulate([make_result(), make_result("default", None, 0.25)]))
    lines = table.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "task", "positions", "protocol", "100-200", "200-400", "400+", "all", "chance",
    ]  # fmt: skip
    assert "v2pe_fix stride 1" in lines[2]
    assert "0.750 ±0.097 (n 20)" in lines[2]
    assert "| default " in lines[3]
    assert lines[3].rstrip(" |").endswith("0.100")


def test_records_carry_everything_a_report_needs():
    rows = tabulate([make_result()])
    assert [row["length"] for row in rows] == ["100-200", "200-400", "400+", "all"]
    row = rows[0]
    assert row["accuracy"] == 0.75
    assert row["count"] == 20
    assert row["chance"] == pytest.approx(0.1)
    assert row["stderr"] == pytest.approx((0.75 * 0.25 / 20) ** 0.5)
    assert (row["rope_pos_id_version"], row["rope_pos_id_stride"]) == ("v2pe_fix", 1)


def test_runs_with_equal_positions_are_told_apart():
    labels = label_settings([make_result(checkpoint="abc"), make_result(checkpoint="def")])
    assert labels == ["v2pe_fix stride 1, checkpoint abc", "v2pe_fix stride 1, checkpoint def"]


def test_quantized_caches_are_told_apart():
    quantized = make_result()
    quantized["settings"]["kv_cache"] = "quantized"
    assert label_settings([make_result(), quantized]) == ["v2pe_fix stride 1", "v2pe_fix stride 1, kv_cache quantized"]


def test_length_labels():
    assert [label_length(*pair) for pair in ((None, 1000), (1000, 1500), (64000, None))] == ["<1k", "1k-1500", "64k+"]


def test_page_is_self_contained_and_escaped():
    page = render_page([make_result(), make_result("default", None, 0.25)], title="A <b> & c")
    assert "A &lt;b&gt; &amp; c" in page
    assert "<data>" not in page
    assert page.count('src="data:image/png;base64,') == 3
    for loader in ('src="http', "href=", "url(", "<script", "@import"):
        assert loader not in page


def write_results(folder, *results):
    for index, result in enumerate(results):
        path = folder / str(index) / "scores.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))


def test_command_writes_page_json_and_markdown(tmp_path, capsys):
    write_results(tmp_path / "a", make_result())
    write_results(tmp_path / "b", make_result("default", None, 0.25))
    out = tmp_path / "site" / "index.html"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out), "--json", str(tmp_path / "r.json")]) == 0
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert len(json.loads((tmp_path / "r.json").read_text())["rows"]) == 8
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out


def test_folders_without_results_are_an_error(tmp_path, capsys):
    with pytest.raises(EvalError, match=r"holds no scores\.json"):
        find_results([tmp_path])
    assert main([str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "x.html").exists()


def test_broken_scores_are_an_error(tmp_path):
    (tmp_path / "scores.json").write_text('{"protocol": "official", "results": {}}')
    with pytest.raises(EvalError, match="is broken"):
        find_results([tmp_path])
