"""The miniature study as data: what is read of finished runs, how seeds are averaged, tables and figures."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch

from eval.metrics.estimate import wilson_interval
from eval.run import __main__ as run
from internvl.errors import EvalError
from internvl.model import rotary
from studies.miniature import coarse_rotary
from studies.miniature.__main__ import main
from studies.miniature.cells import LENGTHS, Cell, collect_cells, list_settings, read_study, summarise, write_study
from studies.miniature.figures import make_figures, write_figures
from studies.miniature.page import render_study
from studies.miniature.tables import (
    format_table,
    format_tables,
    tabulate_effects,
    tabulate_gain,
    tabulate_matrix,
    tabulate_schemes,
    tabulate_words,
    update_page,
)

REPOSITORY = Path(__file__).parents[2]
RESULTS = sorted((REPOSITORY / "docs" / "results").glob("miniature*.json"))
TASKS = {"text": "retrieval-text-test", "first digit": "retrieval-image-test", "second digit": "reasoning-image-test"}
TASKS |= {"first or second digit": "retrieval-image-order-test", "left or right digit": "reasoning-image-sides-test"}
EDGES = sorted(LENGTHS)


def write_scores(folder: Path, question: str, scores: dict[int, float], count: int = 20) -> Path:
    """A scores.json as eval.run writes it, with all needles at the second fifth."""
    by_length = [
        {"low": low, "high": None, "score": scores[length], "stderr": 0.1, "count": count, "chance": 0.1}
        for low, length in LENGTHS.items()
        if length in scores
    ]
    rows = [None, *(LENGTHS[low] for low in EDGES)]
    counts = [[0, count if length in scores else 0, 0, 0, 0] for length in rows]
    sums = [[0.0, count * scores.get(length, 0.0), 0.0, 0.0, 0.0] for length in rows]
    edges = {"lengths": ["<100", *map(str, EDGES)], "depths": [0, 0.2, 0.4, 0.6, 0.8]}
    grid = {**edges, "score_sums": sums, "counts": counts}
    counted = {"score": 0.5, "stderr": 0.1, "count": count, "num_failed": 0, "num_empty": 0, "chance": 0.1}
    numbers = {**counted, "by_length": by_length, "by_depth_and_length": grid}
    task = f"mm_niah/{TASKS[question]}"
    path = folder / task / "scores.json"
    path.parent.mkdir(parents=True)
    head = {"task": task, "version": 1, "source": "here", "protocol": "official", "settings": {}, "info": {}}
    path.write_text(json.dumps({**head, "results": {"official": numbers}}))
    return path


def cell(seed, score, *, method="default", evaluation="stride_1", question="text", length=16, count=20):
    return Cell(
        seed, method, evaluation, question, length, score, count, (0.0, count * score, 0, 0, 0), (0, count, 0, 0, 0)
    )


def test_finished_evaluations_become_cells(tmp_path):
    write_scores(tmp_path / "seed_3/rnd_image/evaluations/stride_1-16+logn-256", "second digit", {1: 0.9, 16: 0.25})
    write_scores(tmp_path / "seed_3/stage1/gate", "first digit", {1: 0.9})  # no evaluation of the study
    short, long = collect_cells(tmp_path)
    assert (short.length, short.score) == (1, 0.9)
    assert long == Cell(
        3, "rnd_image", "stride_1-16+logn-256", "second digit", 16, 0.25, 20, (0, 5.0, 0, 0, 0), (0, 20, 0, 0, 0)
    )


def test_an_empty_or_broken_study_is_refused(tmp_path):
    with pytest.raises(EvalError, match=r"studies/miniature/run\.sh"):
        collect_cells(tmp_path)
    path = write_scores(tmp_path / "seed_0/default/evaluations/default", "text", {1: 0.9})
    content = json.loads(path.read_text())
    content["results"]["official"]["by_length"][0]["low"] = 1000
    path.write_text(json.dumps(content))
    with pytest.raises(EvalError, match="--length_bins 100 250 450 800 1600 3200"):
        collect_cells(tmp_path)


def test_data_survives_the_file(tmp_path):
    cells = [cell(0, 0.25), cell(1, 0.5, question="first digit")]
    write_study(tmp_path / "results" / "study.json", cells)
    assert read_study(tmp_path / "results" / "study.json") == cells
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(EvalError, match=r"other\.json"):
        read_study(tmp_path / "other.json")


def test_a_later_run_adds_to_a_study_and_replaces_its_own_settings(tmp_path):
    results = tmp_path / "study.json"
    write_study(results, [cell(0, 0.25, length=1), cell(0, 0.25, length=16), cell(1, 0.5)])
    write_scores(tmp_path / "work/seed_0/default/evaluations/stride_1", "text", {1: 1.0})
    write_scores(tmp_path / "work/seed_2/default/evaluations/stride_1", "text", {1: 0.75})
    command = ["collect", str(tmp_path / "work"), "--out", str(results)]
    assert main([*command, "--add"]) == 0
    assert [(c.seed, c.length, c.score) for c in read_study(results)] == [(0, 1, 1.0), (1, 16, 0.5), (2, 1, 0.75)]
    assert main(command) == 0
    assert [c.seed for c in read_study(results)] == [0, 2]


def test_the_interval_of_few_seeds_is_students():
    scores = [0.5, 0.6, 0.7, 0.6, 0.55]
    summary = summarise([cell(seed, score) for seed, score in enumerate(scores)])
    spread = 2.776 * statistics.stdev(scores) / math.sqrt(5)
    assert summary.mean == pytest.approx(0.59)
    assert (summary.low, summary.high) == pytest.approx((0.59 - spread, 0.59 + spread), abs=1e-4)
    assert (summary.least, summary.most, summary.num_seeds) == (0.5, 0.7, 5)


def test_intervals_stay_shares_and_one_seed_counts_its_questions():
    wide = summarise([cell(0, 0.0), cell(1, 1.0)])
    assert (wide.low, wide.high) == (0.0, 1.0)
    one = summarise([cell(4, 0.25)])
    assert (one.low, one.high) == wilson_interval(0.25, 20)


def test_questions_of_a_seed_are_averaged_before_seeds():
    cells = [cell(0, 0.2, question="first digit"), cell(0, 0.4, question="second digit"), cell(1, 0.9)]
    assert summarise(cells).mean == pytest.approx((0.3 + 0.9) / 2)


def test_tables_have_a_line_per_setting_and_a_column_per_length():
    cells = [cell(0, 0.25), cell(1, 0.5), cell(0, 1.0, length=1), cell(0, 0.125, method="rnd_image")]
    assert format_tables(cells).splitlines()[-4:] == [
        "| trained with | asked with | seeds | 1x | 16x |",
        "| --- | --- | --- | --- | --- |",
        "| `default` | `stride_1` | 2 | 1.000 | 0.375 (0.25..0.50) |",
        "| `rnd_image` | `stride_1` | 1 | - | 0.125 |",
    ]


def test_both_digits_share_a_table_and_options_have_tables_of_their_own():
    cells = [
        cell(0, 0.2, question="first digit"),
        cell(0, 0.4, question="second digit"),
        cell(0, 0.5, method="rnd_image"),
        cell(0, 0.6, method="rnd_image", evaluation="stride_1+bf16"),
    ]
    titles = ("word of a sentence", "first and second digit of a picture")
    text = format_tables(cells)
    for title in (*titles, f"{titles[0]}, further evaluations"):
        assert f"**{title}** " in text
    assert "| `default` | `stride_1` | 1 | 0.300 |" in text
    usual, further = text.split("further evaluations")
    assert "`stride_1+bf16`" not in usual.split(f"**{titles[0]}** ")[1]
    assert "| `rnd_image` | `stride_1+bf16` | 1 | 0.600 |" in further


def test_settings_go_from_large_strides_to_small_ones():
    names = ("stride_1-16", "stride_1-4+yarn-4", "default+logn-256", "stride_1-4", "stride_1", "default")
    cells = [cell(0, 0.5, evaluation=name) for name in names] + [cell(0, 0.5, method="a", evaluation="stride_2")]
    assert [evaluation for _, evaluation in list_settings(cells)] == [
        "default", "default+logn-256", "stride_1", "stride_1-4", "stride_1-4+yarn-4", "stride_1-16", "stride_2",
    ]  # fmt: skip


def test_the_gain_is_that_of_each_seed_on_the_digits():
    asked = {"evaluation": "stride_1-16", "question": "first digit"}
    cells = [
        cell(0, 0.25, **asked),
        cell(0, 0.75, method="rnd_image", **asked),
        cell(1, 0.5, **asked),  # without its counterpart
        cell(2, 0.5, **asked),
        cell(2, 0.45, method="rnd_image", **asked),
    ]
    assert tabulate_gain(cells).rows == (("0", "0.250", "0.750", "+0.500"), ("2", "0.500", "0.450", "-0.050"))
    assert not tabulate_gain(cells[:1]).rows


def test_other_methods_stand_beside_the_gain():
    asked = {"evaluation": "stride_1-16", "question": "second digit"}
    cells = [
        cell(seed, 0.25 + 0.25 * seed, method=method, **asked) for seed in (0, 1) for method in ("default", "rnd_image")
    ]
    table = tabulate_gain([*cells, cell(1, 0.75, method="fix_0.25", **asked)])
    assert table.head == ("seed", "`default`", "`rnd_image`", "gain", "`fix_0.25`")
    assert table.rows == (("0", "0.250", "0.250", "+0.000", "-"), ("1", "0.500", "0.500", "+0.000", "0.750"))


def test_words_by_seed_show_the_order_of_methods():
    cells = [
        cell(0, 0.75, evaluation="stride_1-16"),
        cell(0, 0.5, evaluation="default"),
        cell(1, 0.25, method="rnd_image", evaluation="stride_1-16"),
        cell(1, 1.0, method="rnd_image", evaluation="default", length=1),
    ]
    table = tabulate_words(cells)
    assert table.head[1:3] == (
        "`default` asked with `stride_1-16`",
        "`rnd_image` asked with `stride_1-16`",
    )
    assert table.rows == (("0", "0.750", "-", "0.500", "-"), ("1", "-", "0.250", "-", "-"))


def test_the_matrix_sets_training_against_inference_positions():
    cells = [
        *(cell(seed, 0.5 * seed, evaluation="stride_1-4", length=length) for seed in (0, 1) for length in (1, 2, 16)),
        cell(0, 0.25, method="rnd_image", evaluation="default"),
        cell(0, 1.0, method="rnd_image", evaluation="stride_1-4+bf16"),
        cell(0, 1.0, method="rnd_image", evaluation="stride_1-4", question="first digit"),
    ]
    table = tabulate_matrix(cells, "text")
    assert table.note.startswith("at 1x / 16x; mean over 2 seeds")
    assert table.head == ("trained with", "asked with `default`", "asked with `stride_1-4`")
    assert table.rows == (("`default`", "- / -", "0.25 / 0.25"), ("`rnd_image`", "- / 0.25 (1)", "- / -"))
    assert not tabulate_matrix(cells, "digits").rows


def test_the_effect_of_an_option_is_that_on_the_same_models():
    cells = [
        *(cell(seed, 0.5) for seed in (0, 1, 2)),
        cell(1, 0.75, evaluation="stride_1+bf16"),
        cell(2, 0.25, evaluation="stride_1+bf16"),
        cell(2, 0.5, question="first digit"),
        cell(2, 0.4999, question="first digit", evaluation="stride_1+bf16"),
        cell(3, 1.0, evaluation="stride_1+bf16"),  # without its counterpart
        cell(0, 0.25, method="rnd_image", evaluation="stride_1+logn-256"),  # likewise
    ]
    table = tabulate_effects(cells)
    assert table.head == ("trained with", "asked with", "seeds", "text 16x", "digits 16x")
    assert table.rows == (("`default`", "`stride_1+bf16`", "2", "+0.00 (-0.25..+0.25)", "+0.00"),)
    assert not tabulate_effects(cells[:3]).rows


def test_other_positions_are_compared_with_the_control_and_a_stride_with_none():
    asked = {"evaluation": "own", "question": "left or right digit"}
    cells = [
        *(cell(seed, 0.25, **asked) for seed in (0, 1)),
        *(cell(seed, 0.5 + 0.25 * seed, method="axes_mrope", **asked) for seed in (0, 1)),
        cell(1, 1.0, method="axes_mrope_stride_0.25", **asked),
        cell(1, 1.0, method="fix_0.25", evaluation="own+yarn-16", question="left or right digit"),
    ]
    table = tabulate_schemes(cells)
    assert table.head == ("trained with", "minus", "seeds", "sides 16x")
    assert table.rows == (
        ("`axes_mrope`", "`default`", "2", "+0.38 (+0.25..+0.50)"),
        ("`axes_mrope_stride_0.25`", "`default`", "1", "+0.75"),
        ("`axes_mrope_stride_0.25`", "`axes_mrope`", "1", "+0.25"),
    )


def test_order_and_sides_have_tables_and_figures_of_their_own():
    cells = [
        cell(0, score, method=method, evaluation=evaluation, question=question)
        for score, question in ((0.75, "first or second digit"), (0.5, "left or right digit"))
        for method in ("default", "axes_mrope")
        for evaluation in ("own", "own+yarn-16")
    ]
    text = format_tables(cells)
    assert "**left or right digit, in opposite corners** (mean over seeds" in text
    assert "| `axes_mrope` | `own` | 1 | 0.750 |" in text
    assert "| `axes_mrope` | `own` | 1 | 0.500 |" in text
    assert "training against inference positions" not in text  # all are asked with their own
    figures = make_figures(cells, "study", lines=(), heatmaps=())
    assert list(figures) == ["study_order_own", "study_sides_own"]
    panels = figures["study_sides_own"].axes
    assert [axes.get_title() for axes in panels] == ["asked with own", "asked with own+yarn-16"]


def test_a_table_in_markdown():
    table = tabulate_gain([])
    assert format_table(table).splitlines() == [
        "**digits at 16x by seed** (all asked with `stride_1-16`; the gain is that of `rnd_image` over `default`)",
        "",
        "| seed | `default` | `rnd_image` | gain |",
        "| --- | --- | --- | --- |",
    ]


def test_the_html_page_holds_figures_tables_and_links():
    cells = [cell(0, 0.25), cell(1, 0.5), cell(0, 0.125, method="rnd_image")]
    figures = make_figures(cells, "study", heatmaps=["default@stride_1"], lines=["default@stride_1"])
    text = render_study(cells, figures, title="A < B", links={"seed 0": "seed_0/index.html"})
    assert "<h1>A &lt; B</h1>" in text
    assert text.count("<svg") == len(figures) == 3
    assert text.index("<details>") > text.index("<table>")
    assert '<a href="seed_0/index.html">seed 0</a>' in text
    assert "<td><code>rnd_image</code></td><td><code>stride_1</code></td><td>1</td><td>0.125</td>" in text


def test_the_page_gets_its_tables_and_keeps_the_rest():
    page = "above\n<!-- tables: study.json -->\nold\n<!-- end of tables -->\nbelow\n"
    new = update_page(page, "study.json", "| new \\1 |")
    assert new == "above\n<!-- tables: study.json -->\n\n| new \\1 |\n\n<!-- end of tables -->\nbelow\n"
    assert update_page(new, "study.json", "| new \\1 |") == new
    with pytest.raises(EvalError, match=r"0 times .*other\.json"):
        update_page(page, "other.json", "")


def test_figures_are_written_of_what_is_there(tmp_path):
    cells = [
        cell(0, 0.25),
        cell(1, 0.5),
        cell(0, 1.0, length=1, method="rnd_image"),
        cell(0, 0.5, question="first digit"),
    ]
    names = ["default@stride_1", "rnd_image@stride_1", "default@missing"]
    paths = write_figures(make_figures(cells, "study", lines=names, heatmaps=names[::2]), tmp_path / "figures")
    assert [path.name for path in paths] == [
        "study_text.png",
        "study_text_by_method.png",
        "study_text_depth_default@stride_1.png",
        "study_digits.png",
        "study_digits_by_method.png",
        "study_digits_depth_default@stride_1.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.parametrize(("second", "code"), [(0.96, 0), (0.94, 1)])
def test_a_goal_is_reached_when_both_digits_are(tmp_path, capsys, second, code):
    write_scores(tmp_path, "first digit", {1: 0.95, 16: 0.1})
    write_scores(tmp_path, "second digit", {1: second})
    assert main(["check", str(tmp_path), "--goal", "0.95"]) == code
    assert f"second digit {second:.3f} at 1x; goal 0.95" in capsys.readouterr().out


def test_a_goal_of_opposite_corners_is_that_of_order_and_side(tmp_path, capsys):
    write_scores(tmp_path, "first or second digit", {1: 1.0})
    write_scores(tmp_path, "left or right digit", {1: 0.9})
    assert main(["check", str(tmp_path), "--goal", "0.95"]) == 1
    assert "left or right digit 0.900 at 1x" in capsys.readouterr().out


def test_a_goal_needs_both_digits(tmp_path, capsys):
    write_scores(tmp_path, "first digit", {1: 0.99})
    assert main(["check", str(tmp_path)]) == 2
    assert "['first digit'] at length 1x" in capsys.readouterr().err


def test_the_command_line_makes_data_tables_and_figures(tmp_path, capsys):
    for seed in (0, 1):
        write_scores(tmp_path / f"work/seed_{seed}/default/evaluations/default", "text", {1: 1.0, 16: 0.25 * seed})
    results, page = tmp_path / "study.json", tmp_path / "page.md"
    assert main(["collect", str(tmp_path / "work"), "--out", str(results)]) == 0
    page.write_text("# Page\n<!-- tables: study.json -->\n<!-- end of tables -->\n")
    assert main(["tables", str(results), "--page", str(page)]) == 0
    assert "| `default` | `default` | 2 | 1.000 (1.00..1.00) | 0.125 (0.00..0.25) |" in page.read_text()
    assert main(["draw", str(results), "--out", str(tmp_path / "figures")]) == 0
    assert (tmp_path / "figures" / "study_text.png").is_file()
    (tmp_path / "work/seed_1/index.html").write_text("")
    assert main(["page", str(results), "--out", str(tmp_path / "work/index.html"), "--title", "Words"]) == 0
    html = (tmp_path / "work/index.html").read_text()
    assert "<h1>Words</h1>" in html
    assert '<a href="seed_1/index.html">seed 1</a>' in html
    assert "seed_0/index.html" not in html
    assert main(["tables", str(tmp_path / "missing.json")]) == 2


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.name)
def test_the_documented_tables_are_those_of_the_results(results):
    page = (REPOSITORY / "docs" / "reproduction.md").read_text()
    assert update_page(page, results.name, format_tables(read_study(results))) == page


def test_every_figure_of_the_study_stands_on_the_page():
    page = (REPOSITORY / "docs" / "reproduction.md").read_text()
    results = REPOSITORY / "docs" / "results"
    names = [
        name
        for stem in ("miniature", "miniature_schemes")
        for name in make_figures(read_study(results / f"{stem}.json"), stem)
    ]
    shown = re.findall(r"\(images/(miniature_[^)]*)\.png\)", page)
    assert sorted(shown) == sorted(names)
    assert all((REPOSITORY / "docs" / "images" / f"{name}.png").is_file() for name in names)


def test_coarse_tables_have_the_values_of_bfloat16_for_one_run_only(monkeypatch, tmp_path):
    positions, frequencies = torch.arange(40).unsqueeze(0) / 16, torch.tensor([1.0, 0.1, 0.01, 0.001])
    exact_tables, seen = rotary.rotary_tables, []

    def fake_run(arguments):
        seen.append(rotary.rotary_tables(positions, frequencies))
        return 3

    monkeypatch.setattr(run, "main", fake_run)
    common = ["--checkpoint", "x", "--tasks", "pope", "--out"]
    assert coarse_rotary.main([*common, str(tmp_path / "stride_1-16+bf16")]) == 3
    fine = rotary.rotary_tables(positions, frequencies)
    for coarse, exact in zip(seen[0], fine, strict=True):
        assert coarse.dtype == torch.float32
        assert torch.equal(coarse, exact.bfloat16().float())
        assert not torch.equal(coarse, exact)
    assert rotary.rotary_tables is exact_tables


def test_coarse_tables_need_a_folder_that_says_so(capsys, tmp_path):
    assert coarse_rotary.main(["--checkpoint", "x", "--tasks", "pope", "--out", str(tmp_path / "stride_1-16")]) == 2
    assert "ends in +bf16" in capsys.readouterr().err
    assert coarse_rotary.main(["--checkpoint", "x", "--tasks", "pope"]) == 2
