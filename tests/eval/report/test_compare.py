"""Two runs, question by question, as the command shows them."""

import json

import pytest

from eval.report.__main__ import main as report
from eval.report.compare import main
from eval.score import main as score

TEXT, IMAGE = "mm_niah/retrieval-text-test", "mm_niah/retrieval-image-test"


@pytest.fixture
def runs(benchmark_root, record, saved_runs, tmp_path):
    """Ordinary positions and a stride of 1/16: the stride gains ten long questions of each task and loses one."""
    for stem in ("retrieval-text", "retrieval-image"):
        records = [record(i, context_length=100 if i < 20 else 900) for i in range(40)]
        benchmark_root.write(stem, records)
    for name, stride, version in (("a", None, "default"), ("b", 1 / 16, "v2pe_fix")):
        for task in (TEXT, IMAGE):
            wrong = range(20, 30) if version == "default" else [0]
            responses = ["red" if i in wrong else "blue" for i in range(40)]
            saved_runs.write(
                tmp_path / name, task, responses, data_root=benchmark_root.root, stride=stride, version=version
            )
    assert score([str(tmp_path / "a"), str(tmp_path / "b"), "--length_bins", "100", "800"]) == 0
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def read_lines(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_every_task_length_and_the_mean_have_a_line(runs, capsys):
    assert main(runs) == 0
    out = capsys.readouterr().out
    head, _, *lines = read_lines(out)
    assert head[3:5] == ["default positions", "V2PE stride 1/16"]
    assert [line[:3] for line in lines] == [
        [IMAGE, "all", "40"], [IMAGE, "100-800", "20"], [IMAGE, "800+", "20"],
        [TEXT, "all", "40"], [TEXT, "100-800", "20"], [TEXT, "800+", "20"],
        ["mean of all tasks", "all", "80"], ["mean of all tasks", "100-800", "40"], ["mean of all tasks", "800+", "40"],
    ]  # fmt: skip
    by_place = {(line[0], line[1]): line[5:] for line in lines}
    assert by_place[TEXT, "all"][0].startswith("+0.225 [+0.0")
    assert by_place[TEXT, "all"][1:] == ["10", "1", "0.012", "better"]
    assert by_place[TEXT, "800+"][0].startswith("+0.500 [")
    assert by_place[TEXT, "100-800"][1:] == ["0", "1", "1", "no clear difference"]
    assert by_place["mean of all tasks", "all"][1:3] == ["20", "2"]
    assert f"{TEXT}: V2PE stride 1/16 gains 20, 21, 22, 23, 24, and 5 more" in out
    assert f"{TEXT}: V2PE stride 1/16 loses 0" in out


def test_json_has_the_same_with_every_changed_question(runs, tmp_path, capsys):
    assert main([*runs, "--json", str(tmp_path / "c.json"), "--names", "plain", "V2PE"]) == 0
    first = json.loads((tmp_path / "c.json").read_text())[0]
    assert (first["task"], first["length"], first["reference"], first["run"]) == (IMAGE, "all", "plain", "V2PE")
    assert (first["reference_score"], first["score"], first["count"]) == (0.75, 0.975, 40)
    assert first["difference"] == pytest.approx(0.225)
    assert first["difference_interval"][0] < 0.225 < first["difference_interval"][1]
    assert first["reference_interval"][0] < 0.75 < first["reference_interval"][1]
    assert (first["better"], first["worse"]) == ([str(i) for i in range(20, 30)], ["0"])
    assert (first["num_better"], first["num_worse"], first["verdict"]) == (10, 1, "better")
    assert first["p_value"] == pytest.approx(2 * 12 / 2**11)


def test_another_run_may_be_the_baseline(runs, capsys):
    assert main([*runs, "--baseline", "V2PE stride 1/16"]) == 0
    [_, _, first, *_] = read_lines(capsys.readouterr().out)
    assert (first[6:8], first[-1]) == (["1", "10"], "worse")


def test_the_runs_of_a_report_are_compared_under_its_names(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert report([*runs, "--out", str(page), "--names", "x", "y", "--samples", "0"]) == 0
    capsys.readouterr()
    assert main([str(page.with_suffix(".json"))]) == 0
    assert read_lines(capsys.readouterr().out)[0][3:5] == ["x", "y"]
    rows = json.loads(page.with_suffix(".json").read_text())["comparisons"]
    assert {row["verdict"] for row in rows} == {"better", "no clear difference"}


def test_a_task_of_one_run_only_is_named_and_left_out(runs, tmp_path, capsys, caplog):
    (tmp_path / "b" / IMAGE / "scores.json").unlink()
    assert main(runs) == 0
    assert f"V2PE stride 1/16 has no {IMAGE}" in caplog.text
    assert {line[0] for line in read_lines(capsys.readouterr().out)[2:]} == {TEXT}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--baseline", "V2PE stride 1/8"], "no run 'V2PE stride 1/8', did you mean 'V2PE stride 1/16'?; runs: "),
        (["--names", "x"], "--names has 1 names (x), expected a different one for each of the 2 runs: "),
        (["--names", "x", "x"], "--names has 2 names (x, x)"),
    ],
)
def test_wrong_names_are_refused(runs, capsys, change, message):
    assert main([*runs, *change]) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(runs, tmp_path, capsys):
    assert main(runs[:1]) == 2
    assert "no other run shares scored questions with 'default positions'" in capsys.readouterr().err
    path = tmp_path / "page.json"
    for content in ("[]", "{", '{"folders": [1], "names": []}', "{}", '{"folders": ["a", "b"], "names": ["x"]}'):
        path.write_text(content)
        assert main([str(path)]) == 2
        assert f"{path} is no report of eval.report" in capsys.readouterr().err
