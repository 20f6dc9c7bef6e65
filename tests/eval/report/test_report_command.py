"""`python -m eval.report`: what it writes, and what it refuses."""

import csv
import io
import json

import pytest

from eval.core.result import find_results
from eval.report.__main__ import main
from internvl.errors import EvalError
from tests.eval.report.results import make_content


def write_results(folder, *results):
    for index, result in enumerate(results):
        path = folder / str(index) / "scores.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))


def test_command_writes_page_json_and_markdown(tmp_path, capsys):
    write_results(tmp_path / "a", make_content())
    write_results(tmp_path / "b", make_content("default", None, 0.25))
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
    write_results(tmp_path / "a", make_content())
    assert main([str(tmp_path / "a"), "--samples", "-1"]) == 2
    assert "--samples" in capsys.readouterr().err
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "a" / "0" / "scores.json" / "x.html")]) == 2


def test_the_page_lies_in_the_first_folder_unless_told(tmp_path):
    write_results(tmp_path / "a", make_content())
    assert main([str(tmp_path / "a")]) == 0
    assert {path.name for path in (tmp_path / "a").glob("report.*")} == {
        "report.html", "report.md", "report.csv", "report.json",
    }  # fmt: skip


def test_a_folder_given_twice_counts_once_and_numbers_sort_as_numbers(tmp_path):
    for stride in (256, 16, 64):
        write_results(tmp_path / f"eval_{stride}", make_content(stride=stride))
    results = find_results([tmp_path, tmp_path / "eval_16"])
    assert [result.settings.rope_pos_id_stride for result in results] == [16, 64, 256]


def test_means_over_tasks_stand_with_their_standard_errors_in_every_form(tmp_path, capsys):
    results = [
        make_content(task=f"vqa/chartqa-test-{part}", accuracy=a) for part, a in (("human", 0.5), ("augmented", 1))
    ]
    write_results(tmp_path, *results)
    assert main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    score, stderr = 0.75, 0.05 / 2**0.5
    assert "<b>0.750</b> <small>[0.675, 0.812], n 120</small>" in (tmp_path / "page.html").read_text()
    line = "| vqa / chartqa-test / official | 0.750 [0.675, 0.812] (n 120) |"
    assert line in (tmp_path / "page.md").read_text()
    assert line in capsys.readouterr().out
    expected = {
        "task": "vqa / chartqa-test",
        "setting": "V2PE stride 1",
        "protocol": "official",
        "length": "average",
    }
    [row] = json.loads((tmp_path / "page.json").read_text())["averages"]
    assert row.pop("interval") == [pytest.approx(0.675, abs=1e-3), pytest.approx(0.812, abs=1e-3)]
    assert row == {**expected, "accuracy": score, "stderr": pytest.approx(stderr), "count": 120}
    line = list(csv.DictReader((tmp_path / "page.csv").open()))[-1]
    assert {key: line[key] for key in expected} == expected
    assert (float(line["accuracy"]), float(line["stderr"])) == (score, pytest.approx(stderr))
