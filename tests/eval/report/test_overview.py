"""Own runs in the published tables."""

import math
from pathlib import Path

import pytest

from eval.core.result import parse_result
from eval.metrics.estimate import Estimate
from eval.metrics.milebench import SETS as MILEBENCH_SETS
from eval.report.labels import name_runs
from eval.report.overview import build_overview, format_results, list_averages
from eval.report.published import GENERAL, GENERAL_COLUMNS, LONG, LONG_COLUMNS, SOURCE
from eval.tasks.longvqa import SETS
from eval.tasks.mvbench import VIDEO_FOLDERS


def make_result(task, score, *, stderr=0.01, count=100, stride=64, upstream=None, **numbers):
    counts = {"count": count, "num_failed": 0, "num_empty": 0}
    entry = {"score": score, "stderr": stderr, **counts, "chance": None, **numbers}
    content = {
        "task": task,
        "version": 1,
        "source": "here",
        "protocol": "official",
        "settings": {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": stride, "checkpoint": "abc"},
        "info": {"checkpoint": "/models/mine"},
        "results": {"official": entry, "upstream": {**entry, "score": score if upstream is None else upstream}},
    }
    return parse_result(content, Path(f"/runs/{stride}/{task}"))


def scale(mean):
    return tuple(pytest.approx(100 * bound) for bound in mean.interval)


def show(results):
    return build_overview(results, name_runs(results))


def own_rows(table):
    return [row for row in table.rows if row.is_own]


def test_published_rows_are_as_printed():
    baseline, *_, v2pe = GENERAL
    assert (baseline.name, v2pe.name) == ("InternVL2-2B", "InternVL2-V2PE-32K")
    assert (v2pe.cells["ChartQA"].value, v2pe.cells["SEED-I"].value, baseline.cells["Avg"].value) == (76.4, 71.2, 72.4)
    needles = LONG[0].cells["MM-NIAH avg"]
    assert (needles.value, LONG[-1].cells["MileBench NI"].value, LONG[-1].cells["MVBench"].value) == (21.0, 97.2, 65.6)
    assert "MVBench" not in LONG[0].cells
    assert all(set(row.cells) <= set(GENERAL_COLUMNS) and row.source == SOURCE for row in GENERAL)
    assert all(set(row.cells) <= set(LONG_COLUMNS) and row.source == SOURCE for row in LONG)


def test_the_averages_of_the_baseline_are_the_means_of_its_columns():
    """Guards against a slip in typing."""
    scores = {name: cell.value for name, cell in GENERAL[0].cells.items()}
    assert sum(scores[name] for name in GENERAL_COLUMNS[:-1]) / 9 == pytest.approx(scores["Avg"], abs=0.05)
    scores = {name: cell.value for name, cell in LONG[0].cells.items()}
    assert sum(scores[f"MileBench {group}"] for group in ("T", "S", "NI")) / 3 == pytest.approx(49.9, abs=0.05)


def test_a_column_needs_all_of_its_tasks():
    half = [make_result("vqa/chartqa-test-human", 0.5)]
    assert own_rows(show(half)[0]) == []
    [row] = own_rows(show([*half, make_result("vqa/chartqa-test-augmented", 0.9, stderr=0.03)])[0])
    value, interval = row.cells["ChartQA"]
    assert value == pytest.approx(70.0)
    assert interval == scale(Estimate(0.7, math.hypot(0.01, 0.03) / 2, 200))
    assert set(row.cells) == {"ChartQA"}
    assert (row.name, row.kind) == ("mine, V2PE stride 64", "both rules")


def test_rules_that_differ_have_a_row_each():
    rows = own_rows(show([make_result("vqa/ai2d-test", 0.6, upstream=0.5)])[0])
    assert [(row.kind, row.cells["AI2D"][0]) for row in rows] == [("upstream rule", 50.0), ("official rule", 60.0)]


def test_nine_benchmarks_have_an_average():
    names = [
        "vqa/chartqa-test-human",
        "vqa/chartqa-test-augmented",
        "vqa/docvqa-val",
        "vqa/ai2d-test",
        "vqa/infovqa-val",
    ]
    names += ["scienceqa/test", "pope/test", "mmmu/val", "mmbench/dev-en", "seed/image"]
    scores = [0.0, 1.0, *(0.1 * n for n in range(1, 9))]
    [row] = own_rows(show([make_result(*pair) for pair in zip(names, scores, strict=True)])[0])
    assert row.cells["Avg"][0] == pytest.approx(100 * (0.5 + 3.6) / 9)
    [row] = own_rows(show([make_result(name, 0.5) for name in names[:-1]])[0])
    assert "Avg" not in row.cells


def test_runs_stand_in_rows_of_their_own():
    results = [make_result("pope/test", 0.8, stride=stride) for stride in (16, 64)]
    rows = own_rows(show(results)[0])
    assert [row.name for row in rows] == ["mine, V2PE stride 16", "mine, V2PE stride 64"]


def test_a_task_without_public_answers_fills_no_column():
    result = make_result("mmbench/dev-en", None, stderr=None)
    assert own_rows(show([result])[0]) == []


def make_needles(name, rates):
    """One bin below the first edge, two above; two depths; 10 questions per cell, an empty cell has None."""
    cells = [(0, 0) if rate is None else (rate * 10, 10) for rate in rates]
    grid = {
        "lengths": ["<1k", "1k", "2k"],
        "depths": [0.0, 0.5],
        "score_sums": [[0, 0], [cells[0][0], cells[1][0]], [cells[2][0], cells[3][0]]],
        "counts": [[5, 5], [cells[0][1], cells[1][1]], [cells[2][1], cells[3][1]]],
    }
    average = sum(rate or 0 for rate in rates) / 4
    return make_result(name, 0.5, by_depth_and_length=grid, published_form={"average": average})


def test_needles_are_averaged_over_bins_and_depths():
    results = [
        make_needles(f"mm_niah/{kind}-image-test", (1, 0.5, 0.5, None))
        for kind in ("retrieval", "counting", "reasoning")
    ]
    [row] = own_rows(show(results)[1])
    value, interval = row.cells["MM-NIAH image"]
    assert value == pytest.approx(50.0)
    assert interval == scale(Estimate(0.5, math.sqrt(2 * 0.25 / 10) / 4 / math.sqrt(3), 60))
    assert set(row.cells) == {"MM-NIAH image"}
    results += [
        make_needles(f"mm_niah/{kind}-text-val", (1, 1, 1, 1)) for kind in ("retrieval", "counting", "reasoning")
    ]
    [row] = own_rows(show(results)[1])
    assert row.cells["MM-NIAH avg"][0] == pytest.approx(75.0)


def test_milebench_groups_are_means_over_their_tasks():
    scores = dict.fromkeys(MILEBENCH_SETS, 0.2) | {"ALFRED": 1.0}
    [row] = own_rows(show([make_result(f"milebench/{name}", score) for name, score in scores.items()])[1])
    assert row.cells["MileBench T"][0] == pytest.approx(20.0)
    assert row.cells["MileBench S"][0] == pytest.approx(100 * (4 * 0.2 + 0.6) / 5)
    assert row.cells["MileBench avg"][0] == pytest.approx(100 * (0.2 + 0.28 + 0.2) / 3)


def test_mvbench_counts_questions_and_not_tasks():
    results = [
        make_result(f"mvbench/{name}", float(i == 0), count=300 if i == 0 else 100)
        for i, name in enumerate(VIDEO_FOLDERS)
    ]
    [row] = own_rows(show(results)[1])
    assert row.cells["MVBench"][0] == pytest.approx(100 * 300 / 2200)


def test_long_vqa_has_a_column_per_complete_length():
    results = [make_result(f"longvqa/{name}-32k", 0.5) for name in SETS]
    results.append(make_result(f"longvqa/{SETS[0]}-64k", 0.5))
    table = show(results)[1]
    assert table.columns == (*LONG_COLUMNS, "Long-VQA 32k")
    [row] = own_rows(table)
    assert row.cells["Long-VQA 32k"][0] == pytest.approx(50.0)


def test_averages_are_listed_by_run_and_place():
    names = ("vqa/chartqa-test-human", "vqa/chartqa-test-augmented")
    results = [make_result(name, 0.5, stride=stride) for name in names for stride in (1, 2)]
    averages = list_averages(results, name_runs(results))
    assert list(averages) == ["V2PE stride 1", "V2PE stride 2"]
    mean = Estimate(0.5, pytest.approx(0.01 / 2**0.5), 200)
    assert averages["V2PE stride 1"] == {f"vqa / chartqa-test / {rule}": mean for rule in ("official", "upstream")}
    table = format_results(results)
    assert "| vqa / chartqa-test / official | 0.500 [0.486, 0.514] (n 200) | 0.500 [0.486, 0.514] (n 200) |" in table
    assert format_results(results[:1]).count("\n\n") == 0
