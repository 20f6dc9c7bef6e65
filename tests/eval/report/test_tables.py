import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from eval.core.task import Scored
from eval.metrics.estimate import Estimate
from eval.report.__main__ import main
from eval.report.gallery import Card, Picture, Response
from eval.report.page import render_page
from eval.report.plots import (
    draw_heatmap,
    draw_length_plot,
    draw_stride_plot,
    encode_png,
    encode_svg,
    format_stride,
    write_task_plots,
)
from eval.report.tables import (
    ComparedRow,
    Comparison,
    find_results,
    format_comparison,
    format_csv,
    format_table,
    label_length,
    label_runs,
    label_settings,
    tabulate,
    tabulate_protocols,
)
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


def read_png(figure):
    return np.asarray(Image.open(io.BytesIO(encode_png(figure))).convert("RGB"))


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
    assert page.count("<svg") == 3
    for loader in ('src="http', 'href="http', "url(http", "<script", "<link", "@import"):
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
    table = capsys.readouterr().out
    assert out.with_suffix(".md").read_text().endswith("## Tasks\n\n" + table)
    lines = list(csv.DictReader(io.StringIO(out.with_suffix(".csv").read_text())))
    assert len(lines) == 8
    assert {line["length"] for line in lines} == {"100-200", "200-400", "400+", "all"}


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


def test_a_broken_page_of_the_user_is_no_traceback(tmp_path, capsys):
    write_results(tmp_path / "a", make_result())
    assert main([str(tmp_path / "a"), "--samples", "-1"]) == 2
    assert "--samples" in capsys.readouterr().err
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "a" / "0" / "scores.json" / "x.html")]) == 2


def test_the_page_lies_in_the_first_folder_unless_told(tmp_path):
    write_results(tmp_path / "a", make_result())
    assert main([str(tmp_path / "a")]) == 0
    assert {path.name for path in (tmp_path / "a").glob("report.*")} == {
        "report.html", "report.md", "report.csv", "report.json",
    }  # fmt: skip


def test_a_folder_given_twice_counts_once_and_numbers_sort_as_numbers(tmp_path):
    for stride in (256, 16, 64):
        write_results(tmp_path / f"eval_{stride}", make_result(stride=stride))
    results = find_results([tmp_path, tmp_path / "eval_16"])
    assert [result["settings"]["rope_pos_id_stride"] for result in results] == [16, 64, 256]


def test_equal_runs_in_two_folders_are_told_apart_by_their_folders():
    results = [{**make_result(), "folder": f"/x/{run}/mm_niah/retrieval-text-test"} for run in ("first", "second")]
    assert label_settings(results) == ["v2pe_fix stride 1, first", "v2pe_fix stride 1, second"]


def test_tasks_with_limits_of_their_own_are_one_run():
    results = [make_result(task=f"g/{name}") for name in "ab"]
    results[0]["settings"]["max_num"], results[1]["settings"]["max_num"] = 6, 12
    assert label_runs(results) == ["v2pe_fix stride 1"] * 2
    other = make_result(task="g/a")
    other["settings"]["max_num"] = 1
    assert label_runs([*results, other])[0] == "v2pe_fix stride 1, max_num 6"


def test_every_protocol_is_a_line_of_the_csv_with_its_floors():
    result = make_result()
    floors = {
        "count": 60,
        "empty": 0.0,
        "letters": {"A": 0.1},
        "letter": {"response": "A", "score": 0.1},
        "majority": None,
    }
    result["results"]["upstream"] = {**result["results"]["official"], "score": 0.5, "floors": floors}
    lines = list(csv.DictReader(io.StringIO(format_csv(tabulate_protocols([result])))))
    assert [(line["protocol"], line["length"]) for line in lines][3:5] == [("official", "all"), ("upstream", "100-200")]
    last = lines[-1]
    assert (last["accuracy"], last["floor_letter"], last["floor_letter_score"]) == ("0.5", "A", "0.1")
    assert last["floor_empty"] == "0.0"
    assert last["floor_majority"] == ""
    assert lines[3]["floor_empty"] == ""


def test_means_over_tasks_stand_with_their_standard_errors_in_every_form(tmp_path, capsys):
    results = [
        make_result(task=f"vqa/chartqa-test-{part}", accuracy=a) for part, a in (("human", 0.5), ("augmented", 1))
    ]
    write_results(tmp_path, *results)
    assert main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    score, stderr = 0.75, 0.05 / 2**0.5
    assert "0.750 <small>±0.035, n 120</small>" in (tmp_path / "page.html").read_text()
    line = "| vqa / chartqa-test / official | 0.750 ±0.035 (n 120) |"
    assert line in (tmp_path / "page.md").read_text()
    assert line in capsys.readouterr().out
    expected = {
        "task": "vqa / chartqa-test",
        "setting": "v2pe_fix stride 1",
        "protocol": "official",
        "length": "average",
    }
    [row] = json.loads((tmp_path / "page.json").read_text())["averages"]
    assert row == {**expected, "accuracy": score, "stderr": pytest.approx(stderr), "count": 120}
    line = list(csv.DictReader((tmp_path / "page.csv").open()))[-1]
    assert {key: line[key] for key in expected} == expected
    assert (float(line["accuracy"]), float(line["stderr"])) == (score, pytest.approx(stderr))


def test_cells_cannot_break_a_markdown_table():
    row = ComparedRow("a|b\nc", "2B", {"X": (50.0, None)})
    own = ComparedRow("mine", "rule", {"X": (51.25, 1.5)}, is_own=True)
    text = format_comparison(Comparison("T", ("X", "Y"), (row, own), ("a note",)))
    assert "a\\|b c" in text
    assert "51.2 ±1.5" in text
    assert "**mine**" in text
    assert "- a note" in text


def test_svg_is_the_same_every_time_and_takes_the_colour_of_its_page():
    rows = make_result()["results"]["official"]["by_length"]
    texts = [encode_svg(draw_length_plot({"<x> & $y$": rows}, title="a $b$ <c>")) for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("<svg")
    assert "currentColor" in texts[0]
    assert "a $b$ &lt;c&gt;" in texts[0]
    assert "&lt;x&gt; &amp; $y$" in texts[0]
    assert "<metadata" not in texts[0]


def test_strides_of_one_checkpoint_are_drawn_in_one_plot():
    plain = make_result("default", None, 0.25)
    strides = [make_result(stride=stride) for stride in (1 / 16, 64)]
    page = render_page([plain, *strides], title="t")
    assert page.count("by stride") == 1
    assert ">1/16</text>" in page
    assert "by stride" not in render_page([plain, strides[0]], title="t")
    other = make_result(stride=256, checkpoint="def")
    assert "by stride" not in render_page([strides[0], other], title="t")


def test_stride_plot_orders_strides_by_size():
    figure = draw_stride_plot(
        {"all": [(64, 0.5, 10), (0.0625, 0.9, 10), (1, 0.7, 10)]}, title="t", baselines={"d": 0.1}
    )
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1/16", "1", "64"]
    assert list(axes.lines[0].get_ydata()) == [0.9, 0.7, 0.5]


def test_stride_names():
    assert [format_stride(stride) for stride in (64, 0.0625, 0.3, 1, 2.5)] == ["64", "1/16", "0.3", "1", "2.5"]


def test_text_of_data_and_models_stays_text():
    evil = '<script>alert("x")</script>"\'><img src=x onerror=alert(1)>'
    response = Response(evil, evil, 0.0, evil, evil)
    card = Card(
        evil, evil, evil, {evil: evil}, (response,), (Picture(evil, ""), Picture(evil, "data:image/jpeg;base64,"))
    )
    result = make_result(task=f"g/{evil}")
    result["settings"][evil] = evil
    result["info"]["checkpoint"] = evil
    table = Comparison(evil, (evil,), (ComparedRow(evil, evil, {evil: (1.0, 1.0)}, evil, evil, True),), (evil,))
    page = render_page(
        [result],
        title=evil,
        comparisons=[table],
        averages={evil: {evil: Estimate(1.0, 0.1, 9)}},
        cards={result["task"]: [card]},
    )
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img src=x" not in page
    assert not re.search(r"<[^>]*onerror[^>]*=", re.sub(r'"[^"]*"', "", page))
    assert "script-src 'sha256-" in page


def test_tables_without_an_own_row_are_left_out():
    table = Comparison("Published", ("X",), (ComparedRow("a", "", {"X": (1.0, None)}),))
    assert "Published" not in render_page([make_result()], title="t", comparisons=[table])


def test_the_page_shows_what_blind_answers_get():
    result = make_result()
    result["results"]["official"]["floors"] = {
        "count": 60,
        "empty": 0.125,
        "letters": {"B": 0.375},
        "letter": {"response": "B", "score": 0.375},
        "majority": {"response": "a very long gold answer", "score": 0.625},
    }
    page = render_page([result], title="t")
    assert all(text in page for text in ("0.125", "0.375 <small>B", "0.625 <small>a very long gol…"))
