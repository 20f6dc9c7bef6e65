"""Scores from saved predictions: what is written, and what a damaged or mixed folder says."""

import json
import logging
import shutil

import pytest

from eval.core.predictions import make_fingerprint
from eval.report.summary import write_summary
from eval.score import main, score_folder, score_run

CHOICE, COUNT = "mm_niah/reasoning-image-test", "mm_niah/counting-text-test"


@pytest.fixture
def run(benchmark_root, record, saved_runs, tmp_path):
    """A run of one task: 8 questions with two options, gold A B A B ..., all answered A; the last one failed."""
    benchmark_root.write(
        "reasoning-image", [record(i, answer=i % 2, num_images=2, choices=["up", "down"]) for i in range(8)]
    )
    saved_runs.write(tmp_path / "run", CHOICE, ["A"] * 8, data_root=benchmark_root.root, failures=(7,))
    return tmp_path / "run"


def read(path):
    return json.loads(path.read_text())


def change_settings(folder, **changes):
    """Other settings with a fingerprint of their own, as another evaluation would have written them."""
    path = folder / "settings.json"
    content = read(path)
    content["settings"] |= changes
    content["fingerprint"] = make_fingerprint(content["settings"])
    path.write_text(json.dumps(content))
    for part in (folder / "parts").glob("*.jsonl"):
        lines = [json.loads(line) | {"fingerprint": content["fingerprint"]} for line in part.read_text().splitlines()]
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_scores_hold_everything_that_a_reader_asks_for(run, capsys):
    assert main([str(run)]) == 0
    scores = read(run / CHOICE / "scores.json")
    assert set(scores["results"]) == {"official", "upstream"}
    official = scores["results"]["official"]
    assert official["score"] == 0.5
    assert official["stderr"] == pytest.approx((0.25 / 8) ** 0.5)
    assert (official["count"], official["num_failed"], official["num_empty"]) == (8, 1, 1)
    assert (scores["protocol"], scores["version"], official["chance"]) == ("official", 1, 0.5)
    floors = official["floors"]
    assert floors["empty"] == 0.0
    assert floors["letters"] == {"A": 0.5, "B": 0.5, "C": 0.0, "D": 0.0}
    assert floors["majority"] == {"response": "A", "score": 0.5}
    [task] = read(run / "summary.json")["tasks"]
    assert task["scores"] == {"official": 0.5, "upstream": 0.5}
    assert task["stderrs"] == {"official": task["stderr"], "upstream": task["stderr"]}
    assert (task["version"], task["floors"]["count"]) == (1, 8)
    assert "0.500 [0.215, 0.785] (n 8)" in capsys.readouterr().out


def test_the_same_predictions_give_the_same_bytes(run):
    assert main([str(run)]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*.json")}
    assert main([str(run)]) == 0
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == before


def test_a_failed_question_is_wrong_even_where_an_empty_answer_is_right(data_folder, saved_runs, tmp_path):
    saved_runs.write(tmp_path / "run", "mvbench/state_change", ["", ""], data_root=data_folder, failures=(1,))
    [scores] = score_run(tmp_path / "run", protocol="upstream", length_edges=None)
    assert scores.scores["upstream"].score == 0.5
    assert scores.scores["upstream"].baselines.empty == 1.0


@pytest.fixture
def data_folder(tmp_path):
    """Two MVBench questions; the videos themselves are not opened."""
    path = tmp_path / "data/MVBench/json/state_change.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps([{"video": f"{i}.mp4", "question": "q", "candidates": ["x", "y"], "answer": "x"} for i in "ab"])
    )
    return tmp_path / "data"


def test_a_folder_of_runs_gets_a_summary_per_run(run, benchmark_root, saved_runs, tmp_path):
    saved_runs.write(tmp_path / "other", CHOICE, ["B"] * 8, data_root=benchmark_root.root, stride=16)
    assert main([str(tmp_path)]) == 0
    assert [read(tmp_path / name / "summary.json")["tasks"][0]["score"] for name in ("run", "other")] == [0.5, 0.5]
    assert not (tmp_path / "summary.json").exists()


def test_a_single_task_can_be_scored_and_leaves_the_summary_alone(run):
    assert main([str(run)]) == 0
    before = (run / "summary.json").read_bytes()
    (run / CHOICE / "scores.json").unlink()
    assert main([str(run / CHOICE), "--protocol", "upstream"]) == 0
    assert read(run / CHOICE / "scores.json")["protocol"] == "upstream"
    assert (run / "summary.json").read_bytes() == before
    assert not (run / CHOICE / "summary.json").exists()


def test_tasks_scored_later_join_the_summary(run, benchmark_root, record, saved_runs):
    assert main([str(run)]) == 0
    benchmark_root.write("counting-text", [record(i, answer=[1, 2]) for i in range(2)])
    saved_runs.write(run, COUNT, ["[1, 2]", "[1, 1]"], data_root=benchmark_root.root)
    later = score_folder(run / COUNT, protocol=None, length_edges=None)
    write_summary(run, [later])
    assert [task["task"] for task in read(run / "summary.json")["tasks"]] == [COUNT, CHOICE]


def test_tasks_of_one_run_must_share_their_settings(run, benchmark_root, record, saved_runs, capsys):
    benchmark_root.write("counting-text", [record(i, answer=[1, 2]) for i in range(2)])
    saved_runs.write(run, COUNT, ["[1, 2]", "[1, 1]"], data_root=benchmark_root.root)
    assert main([str(run)]) == 0
    change_settings(run / COUNT, rope_pos_id_stride=16)
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert "mixes evaluations" in error
    assert "rope_pos_id_stride is 16 in mm_niah/counting-text-test; 64 in mm_niah/reasoning-image-test" in error


def test_settings_that_were_edited_are_refused(run, capsys):
    path = run / CHOICE / "settings.json"
    path.write_text(path.read_text().replace('"rope_pos_id_stride": 64', '"rope_pos_id_stride": 16'))
    assert main([str(run)]) == 2
    assert "fingerprint do not belong together" in capsys.readouterr().err


def test_answers_of_two_settings_in_one_folder_are_refused(run, capsys):
    [part] = (run / CHOICE / "parts").glob("*.jsonl")
    lines = part.read_text().splitlines(keepends=True)
    lines[3] = json.dumps(json.loads(lines[3]) | {"fingerprint": "another"}) + "\n"
    part.write_text("".join(lines))
    assert main([str(run)]) == 2
    assert "line 4 was made with other settings" in capsys.readouterr().err


def test_scoring_needs_neither_data_nor_parts(run, benchmark_root):
    shutil.rmtree(benchmark_root.root)
    shutil.rmtree(run / CHOICE / "parts")
    assert main([str(run)]) == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-5], "ends in the middle of a line"),
        (lambda text: "", "is empty"),
        (lambda text: text.replace('"id": "3"', '"id": 3,,', 1), "line 4 is broken"),
        (lambda text: "[1]\n" + text, "line 1 is broken (it is a JSON list, expected an object)"),
        (lambda text: text + '{"id": "0"' + text.splitlines(keepends=True)[1][10:], "different answers of sample '0'"),
        (lambda text: text.replace('"answer": 0', '"answer": {"odd": 1}', 1), "sample '0': cannot be scored"),
        (
            lambda text: text.replace('"response": "A"', '"said": "A"', 1),
            "line 1 is broken (the field 'response'",
        ),
    ],
)
def test_damaged_predictions_are_named(run, capsys, damage, message):
    path = run / CHOICE / "predictions.jsonl"
    path.write_text(damage(path.read_text()))
    shutil.rmtree(run / CHOICE / "parts")
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_missing_settings_and_unknown_tasks_are_named(run, capsys):
    change_settings(run / CHOICE, task="mm_niah/no-such-task")
    assert main([str(run)]) == 2
    assert "unknown task 'mm_niah/no-such-task'" in capsys.readouterr().err
    change_settings(run / CHOICE, task=None)
    assert main([str(run)]) == 2
    assert "names no task" in capsys.readouterr().err
    (run / CHOICE / "settings.json").unlink()
    assert main([str(run)]) == 2
    assert "settings.json" in capsys.readouterr().err


def test_empty_and_missing_folders_are_errors(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "gone"):
        assert main([str(folder)]) == 2
        assert "holds no predictions.jsonl" in capsys.readouterr().err


def test_tasks_that_are_not_finished_are_named(run, benchmark_root, record, saved_runs, caplog):
    benchmark_root.write("counting-text", [record(0, answer=[1, 2])])
    folder = saved_runs.write(run, COUNT, ["[1, 2]"], data_root=benchmark_root.root)
    (folder / "predictions.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        assert main([str(run)]) == 0
    assert f"{folder} is not finished" in caplog.text


def test_predictions_of_an_older_task_keep_their_version(run, caplog):
    change_settings(run / CHOICE, task_version=0)
    with caplog.at_level(logging.WARNING):
        assert main([str(run)]) == 0
    assert "version 0" in caplog.text
    assert read(run / CHOICE / "scores.json")["version"] == 0


def test_unknown_protocols_are_refused(run, capsys):
    assert main([str(run), "--protocol", "mine"]) == 2
    assert "official, upstream" in capsys.readouterr().err
