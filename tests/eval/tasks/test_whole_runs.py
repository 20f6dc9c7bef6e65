"""Tasks of every kind of input through the command line, with the tiny model."""

import base64
import json

import pytest

from eval.report.__main__ import main as report
from eval.run.__main__ import main
from eval.score import main as score

TASKS = ("mmbench/dev-en", "vqa/docvqa-test", "mmmu/val", "mvbench/episodic_reasoning")


@pytest.fixture
def arguments(checkpoint, data_root, tmp_path):
    data_root.write_image("docvqa/1.png")
    content = base64.b64encode((data_root.root / "docvqa/1.png").read_bytes()).decode()
    row = {"index": 1, "question": "q", "A": "cat", "B": "dog", "answer": "A", "image": content}
    data_root.write_table("mmbench/mmbench_dev_20230712.tsv", [row, {**row, "index": 1_000_001}])
    data_root.write_lines("docvqa/test.jsonl", [{"image": "data/docvqa/1.png", "question": "q", "question_id": 1}])
    data_root.write_image("MMMU/images/1.png")
    record = {"id": "validation_Art_1", "question": "q", "options": "['a', 'b']", "answer": "A"}
    pictures = {f"image_{i}": "images/1.png" for i in (1, 2)}
    data_root.write_lines("MMMU/validation.jsonl", [{**record, "question_type": "multiple-choice", **pictures}])
    for index in range(1, 4):
        data_root.write_image(f"MVBench/video/tvqa/frames_fps3_hq/clip/{index:05d}.jpg")
    clip = {"video": "clip", "question": "q", "candidates": ["a", "b"], "answer": "a", "start": 0, "end": 1}
    data_root.write_json("MVBench/json/episodic_reasoning.json", [clip])
    return [
        "--checkpoint", str(checkpoint), "--tasks", ",".join(TASKS), "--data-root", str(data_root.root),
        "--out", str(tmp_path / "run"), "--device", "cpu", "--max_num", "2",
    ]  # fmt: skip


def test_packed_pictures_several_pictures_and_frames_reach_the_model(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "no answers (n 1)" in table
    results = {task: json.loads((tmp_path / "run" / task / "scores.json").read_text()) for task in TASKS}
    assert all(result["results"]["official"]["num_failed"] == 0 for result in results.values())
    lines = (tmp_path / "run" / "mvbench/episodic_reasoning/predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["num_tiles"] == 16
    lines = (tmp_path / "run" / "mmmu/val/predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["num_tiles"] == 3 + 1  # two tiles and a thumbnail, and one tile
    assert results["mvbench/episodic_reasoning"]["settings"]["num_frames"] == 16
    assert score([str(tmp_path / "run")]) == 0
    assert {task: json.loads((tmp_path / "run" / task / "scores.json").read_text()) for task in TASKS} == results
    page = tmp_path / "page.html"
    assert report([str(tmp_path / "run"), "--out", str(page)]) == 0
    assert "no public answers" in page.read_text()


def test_a_changed_answer_file_is_another_setting(arguments, data_root, capsys):
    data_root.write_lines("okvqa/okvqa_val.jsonl", [{"image": "data/docvqa/1.png", "question": "q", "question_id": 1}])
    answers = {"annotations": [{"question_id": 1, "answers": [{"answer": "red"}] * 10}]}
    data_root.write_json("okvqa/mscoco_val2014_annotations.json", answers)
    arguments[3] = "vqa/okvqa-val"
    assert main(arguments) == 0
    answers["annotations"][0]["answers"][0] = {"answer": "blue"}
    data_root.write_json("okvqa/mscoco_val2014_annotations.json", answers)
    assert main(arguments) == 2
    assert "annotation: saved" in capsys.readouterr().err


def test_a_missing_file_of_answers_ends_the_run_before_the_model_is_loaded(arguments, data_root, capsys, monkeypatch):
    monkeypatch.setattr("eval.run.answering.Session", None)
    data_root.write_lines("okvqa/okvqa_val.jsonl", [{"image": "data/docvqa/1.png", "question": "q", "question_id": 1}])
    arguments[3] = "vqa/okvqa-val"
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "okvqa/mscoco_val2014_annotations.json" in error
    assert "https://okvqa.allenai.org" in error


def test_the_list_of_tasks_needs_no_checkpoint(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--list"])
    assert ended.value.code == 0
    names = capsys.readouterr().out.split()
    assert {"vqa/chartqa-test-human", "milebench/ALFRED", "mm_niah/retrieval-text-test"} <= set(names)
