"""MMMU and Video-MME: from parquet files to what the tasks read."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from eval.convert.mmmu import convert as convert_mmmu
from eval.convert.mmmu import main as mmmu
from eval.convert.videomme import main as videomme
from eval.tasks.registry import find_task
from internvl.data.storage.media import load_image
from internvl.errors import DataError
from tests.eval.published import write_mmmu_parquet, write_video


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_mmmu_becomes_questions_and_pictures(tmp_path, caplog):
    for split in ("dev", "validation", "test"):
        write_mmmu_parquet(tmp_path / "parquet", split)
    out = tmp_path / "benchmark" / "MMMU"
    assert mmmu([str(tmp_path / "parquet"), "--out", str(out)]) == 0
    assert "28 subjects are not there: Art_Theory" in caplog.text
    lines = read_lines(out / "validation.jsonl")
    assert [line["id"] for line in lines] == [f"validation_{s}_{i}" for s in ("Art", "Music") for i in (1, 2)]
    assert lines[1]["image_2"] == "images/validation/validation_Art_2_2.jpeg"
    assert "image_3" not in lines[1]
    for split in ("dev", "val", "test"):
        samples = find_task(f"mmmu/{split}").read_samples(tmp_path / "benchmark")
        assert len(samples) == 4
        for sample in samples:
            assert load_image(sample.images[0].path).size == (30, 40)
    assert find_task("mmmu/val").read_samples(tmp_path / "benchmark")[1].answer["text"] == ["2", "two"]
    assert find_task("mmmu/test").read_samples(tmp_path / "benchmark")[0].answer is None


def test_splits_that_are_not_there_are_left_out(tmp_path):
    write_mmmu_parquet(tmp_path / "parquet", "validation")
    assert convert_mmmu(tmp_path / "parquet", tmp_path / "out") == {"validation.jsonl": 4}
    assert not (tmp_path / "out" / "test.jsonl").exists()


def test_nothing_half_written_has_its_name(tmp_path):
    write_mmmu_parquet(tmp_path / "parquet", subjects=("Art", "Music"))
    broken = tmp_path / "parquet" / "Music" / "validation-00000-of-00001.parquet"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"Music/validation-00000-of-00001\.parquet"):
        convert_mmmu(tmp_path / "parquet", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))
    assert not list((tmp_path / "out").glob(".*"))


def spoil(folder, change):
    path = folder / "Art" / "validation-00000-of-00001.parquet"
    rows = parquet.read_table(path).to_pylist()
    change(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[0].update(image_1={"bytes": b"no picture", "path": "x"}),
            "Art_1_1 of 10 bytes cannot be read: it is none of PNG",
        ),
        (lambda rows: rows[0].update(image_1={"bytes": None, "path": "x"}), "of 0 bytes cannot be read"),
        (lambda rows: rows[1].update(id=rows[0]["id"]), "'validation_Art_1' occurs twice"),
        (lambda rows: rows[0].update(id="../../evil"), "leads out of its folder"),
        (lambda rows: [row.pop("options") for row in rows], "no column options"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, change, message):
    write_mmmu_parquet(tmp_path / "parquet")
    spoil(tmp_path / "parquet", change)
    with pytest.raises(DataError, match=message):
        convert_mmmu(tmp_path / "parquet", tmp_path / "out")


@pytest.mark.parametrize("converter", [mmmu, videomme])
def test_a_folder_without_parquet_files_is_named(tmp_path, capsys, converter):
    assert converter([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"below {tmp_path}" in capsys.readouterr().err


def test_videomme_questions_are_gathered_by_video(tmp_path):
    rows = [
        {
            "video_id": f"00{1 + i // 2}", "duration": "short", "domain": "Knowledge", "sub_category": "Biology",
            "url": "u", "videoID": f"name{1 + i // 2}", "question_id": f"00{1 + i // 2}-{i}", "task_type": "Counting",
            "question": "Who?", "options": ["A. a", "B. b", "C. c", "D. d"], "answer": "B",
        }
        for i in range(4)
    ]  # fmt: skip
    (tmp_path / "hub" / "videomme").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub/videomme/test-00000-of-00001.parquet")
    out = tmp_path / "benchmark" / "Video-MME"
    assert videomme([str(tmp_path / "hub"), "--out", str(out)]) == 0
    for number in (1, 2):
        write_video(out / f"data/name{number}.mp4")
    samples = find_task("videomme/test").read_samples(tmp_path / "benchmark")
    assert [sample.id for sample in samples] == ["001-0", "001-1", "002-2", "002-3"]
    assert samples[3].videos[0].path == out / "data/name2.mp4"
    assert samples[0].prompt.endswith("Who?\nA. a\nB. b\nC. c\nD. d\nThe best answer is:")
