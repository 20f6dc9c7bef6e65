"""MileBench's combined pictures, from separate ones."""

import json

import numpy as np
import pytest
from PIL import Image

from eval.check_data import check_task
from eval.convert.milebench import main
from eval.tasks.registry import find_task

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]


@pytest.fixture
def folder(tmp_path):
    """A set with five pictures of one colour each."""
    images = tmp_path / "MileBench/TQA/images"
    images.mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (30, 20), colour).save(images / f"{number}.png")
    instance = {"context": "{image#1}?", "images_path": [f"{n}.png" for n in range(5)], "choice_list": ["cat", "dog"]}
    record = {"sample_id": 7, "task_instruction_id": 0, "task_instance": instance, "response": "cat"}
    meta = {"question_type": "multi-choice", "task_instruction": ["Look."]}
    (images.parent / "TQA.json").write_text(json.dumps({"meta_data": meta, "data": [record]}))
    return tmp_path / "MileBench"


def combine(folder, number):
    return main([str(folder), "--out", str(folder), "--max_canvases", str(number)])


def test_one_canvas_has_all_pictures_row_by_row_with_captions(folder):
    assert combine(folder, 1) == 0
    canvas = np.asarray(Image.open(folder / "TQA/combined_1_images/7-0.jpg"), dtype=int)
    assert canvas.shape == (1600, 2400, 3)
    for number, colour in enumerate([*COLOURS, (0, 0, 0)]):
        top, left = 800 * (number // 3), 800 * (number % 3)
        assert np.abs(canvas[top + 100, left + 100] - colour).max() < 8
        bottom = canvas[top + 760 : top + 800, left + 300 : left + 500]
        has_caption = (bottom.min(-1) > 200).any() and (bottom.max(-1) < 60).any()
        assert has_caption == (number < 5)
    assert not (folder / "TQA/TQA_combined_1.json").exists()
    assert check_task(find_task("milebench/TQA-combined-1"), folder.parent).is_complete


def test_several_canvases_have_a_file_of_their_own(folder):
    assert combine(folder, 3) == 0
    sizes = [Image.open(folder / f"TQA/combined_3_images/7-{number}.jpg").size for number in range(3)]
    assert sizes == [(1600, 800), (1600, 800), (800, 800)]
    task = find_task("milebench/TQA-combined-3")
    assert check_task(task, folder.parent).is_complete
    (sample,) = task.read_samples(folder.parent)
    assert [path.name for path in sample.images] == ["7-0.jpg", "7-1.jpg", "7-2.jpg"]
    assert check_task(find_task("milebench/TQA"), folder.parent).is_complete


def test_canvases_that_are_there_are_kept(folder):
    assert combine(folder, 1) == 0
    path = folder / "TQA/combined_1_images/7-0.jpg"
    path.write_bytes(b"kept")
    assert combine(folder, 1) == 0
    assert path.read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(sample_id="../../x"), "leads out of its folder"),
        (lambda record: record["task_instance"].update(images_path=["../../../x.png"]), "leads out of its root"),
        (lambda record: record["task_instance"].update(images_path=["9.png"]), "9.png not found"),
        (lambda record: record["task_instance"].update(images_path=None), "row 0: the field"),
        (lambda record: record.update(task_instance=[]), "row 0: the field 'task_instance'"),
    ],
)
def test_wrong_records_end_in_one_line(folder, change, message, capsys):
    path = folder / "TQA/TQA.json"
    content = json.loads(path.read_text())
    change(content["data"][0])
    path.write_text(json.dumps(content))
    assert combine(folder, 1) == 2
    assert message in capsys.readouterr().err
    assert not (folder.parent / "x-0.jpg").exists()


def test_no_sets_and_no_canvases_are_said(folder, tmp_path, capsys):
    assert combine(tmp_path, 1) == 2
    assert "no file SET/SET.json below" in capsys.readouterr().err
    assert combine(folder, 0) == 2
    assert "--max_canvases must be at least 1, got 0" in capsys.readouterr().err
