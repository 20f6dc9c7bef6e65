"""Which benchmarks are complete: what the check says about data that is missing, broken, or there."""

import json

import pytest

from eval.check_data import check_task, main, skip_missing
from eval.run.options import RunOptions
from eval.tasks.registry import find_task
from internvl.errors import DataError, EvalError
from tests.eval import published


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "benchmark"
    published.write_pope(folder)
    published.write_mmbench(folder)
    published.write_videomme(folder)
    return folder


def check(root, name, **options):
    return check_task(find_task(name), root, **options)


def test_complete_data_is_counted(root, capsys):
    assert main(["pope,mmbench/dev-en,videomme", "--data-root", str(root), "--open"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["pope/test", "complete: 6 questions, 3 pictures or videos"]
    assert lines[1].split(maxsplit=1) == ["mmbench/dev-en", "complete: 3 questions, 3 pictures or videos"]
    assert lines[-1].startswith("4 of 4 tasks are complete")


def test_missing_files_are_named_with_their_place_and_source(root, capsys):
    (root / "pope/coco/coco_pope_popular.json").unlink()
    assert main(["pope,mmbench/dev-en", "--data-root", str(root)]) == 1
    output = capsys.readouterr().out
    assert f"missing file: {root}/pope/coco/coco_pope_popular.json" in output
    assert "get it from https://github.com/AoiDragon/POPE" in output
    assert "1 of 2 tasks are complete" in output


def test_nothing_at_all_is_a_list_of_files(tmp_path, capsys):
    assert main(["all", "--data-root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "0 of " in output
    assert output.count("missing file:") > 170


def test_missing_pictures_are_counted_and_named(root, capsys):
    for number in (0, 2):
        (root / f"pope/val2014/COCO_{number}.jpg").unlink()
    assert main(["pope", "--data-root", str(root), "--show", "1"]) == 1
    output = capsys.readouterr().out
    assert f"missing: {root}/pope/val2014/COCO_0.jpg" in output
    assert "and 1 more (--show 2)" in output
    assert "2 missing" in check(root, "pope/test").summarise()


def test_missing_videos_and_subtitles_are_named(root):
    (root / "Video-MME/data/name2.mp4").unlink()
    assert [path.name for path in check(root, "videomme/test").missing_media] == ["name2.mp4"]
    (root / "Video-MME/subtitle/name1.srt").unlink()
    (root / "Video-MME/subtitle").rmdir()
    assert check(root, "videomme/test-subtitles").missing_files == (root / "Video-MME/subtitle",)
    with pytest.raises(DataError, match="no subtitles, expected in"):
        find_task("videomme/test-subtitles").read_samples(root)


def test_only_opening_finds_broken_files(root):
    (root / "pope/val2014/COCO_1.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (root / "Video-MME/data/name3.mp4").write_bytes(b"no video")
    table = root / "mmbench/mmbench_dev_20230712.tsv"
    table.write_bytes(table.read_bytes().replace(b"\tdev\t1\t", b"\tdev\t!!!!\t"))
    for name, place in (("pope/test", "COCO_1.jpg"), ("videomme/test", "name3.mp4"), ("mmbench/dev-en", "1000001")):
        assert check(root, name).is_complete
        state = check(root, name, open_media=True)
        assert len(state.broken_media) == 1
        assert place in state.broken_media[0]
        assert not state.is_complete


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file holds no records"),
        (b'{"question_id": 1}\n{"question_id": 2', "line 2 is no JSON"),
        ('{"text": "Straße"}\n'.encode("latin-1"), "line 1 is not UTF-8: byte 15 of the line is 0xdf"),
        ("{}\n".encode("utf-16-le"), "zero bytes, as UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"[1]\n", "line 1 is a JSON list"),
        (b"[" * 200_000, "line 1 is no JSON in UTF-8 (nested too deeply)"),
        (b'{"question_id": NaN, "image": "1.png", "text": "q", "category": "random"}\n', "'question_id' is a NoneType"),
    ],
)
def test_files_that_are_something_else_are_told_apart(root, content, message):
    (root / "pope/llava_pope_test.jsonl").write_bytes(content)
    state = check(root, "pope/test")
    assert message in state.fault
    assert "llava_pope_test.jsonl" in state.fault


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_byte_order_mark_are_read(root, codec):
    for task, name in (("pope/test", "pope/llava_pope_test.jsonl"), ("videomme/test", "Video-MME/videomme.json")):
        expected = find_task(task).read_samples(root)
        path = root / name
        path.write_bytes(path.read_text(encoding="utf-8").encode(codec))
        assert find_task(task).read_samples(root) == expected


def test_an_id_that_is_used_twice_is_named(root):
    lines = (root / "pope/llava_pope_test.jsonl").read_text().splitlines()
    (root / "pope/llava_pope_test.jsonl").write_text("\n".join([*lines, lines[2]]))
    assert "id '2' is used twice" in check(root, "pope/test").fault


def test_answers_to_some_questions_only_are_a_fault(root):
    (root / "MMMU").mkdir()
    record = {"question": "q", "options": "['a', 'b']", "question_type": "multiple-choice", "image_1": "images/1.png"}
    records = [record | {"id": f"dev_Art_{i}", "answer": answer} for i, answer in enumerate(("A", "?"))]
    (root / "MMMU/dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "1 of 2 questions have no answer, the first is 'dev_Art_1'" in check(root, "mmmu/dev").fault


def test_an_unknown_task_is_an_error_of_the_user(root, capsys):
    assert main(["popes", "--data-root", str(root)]) == 2
    assert "unknown task 'popes'" in capsys.readouterr().err


def options(root, tasks, **changes):
    return RunOptions(checkpoint=root, tasks=tasks, data_root=root, skip_missing=True, **changes)


def test_tasks_without_data_are_left_out_of_a_run_and_listed(root, caplog):
    (root / "Video-MME/data/name2.mp4").unlink()
    left, skipped = skip_missing(options(root, "pope,seed,videomme/test,mmbench/dev-en"))
    assert left.tasks == "pope/test,mmbench/dev-en"
    assert [state.task.name for state in skipped] == ["seed/image", "videomme/test"]
    assert f"seed/image: missing: {root}/SEED/seed.jsonl; get it from https://" in caplog.text
    assert "docs/evaluation.md" in caplog.text


def test_broken_data_is_no_missing_data(root):
    (root / "pope/llava_pope_test.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"pope/test: .*line 1 is no JSON"):
        skip_missing(options(root, "pope,mmbench/dev-en"))


def test_a_run_without_any_data_says_what_is_missing(tmp_path):
    with pytest.raises(EvalError, match=r"no complete data set; 1 task .*\n  pope/test: missing: .*llava_pope_test"):
        skip_missing(options(tmp_path, "pope"))


def test_tasks_are_left_alone_without_the_flag(tmp_path):
    asked = RunOptions(checkpoint=tmp_path, tasks="pope", data_root=tmp_path)
    assert skip_missing(asked) == (asked, [])


def test_whole_files_with_a_wrong_byte_are_named_by_line(root):
    content = json.dumps({"a": "ä", "b": "é"}, ensure_ascii=False, indent=1).encode("latin-1")
    (root / "Video-MME/videomme.json").write_bytes(content)
    assert "line 2 is not UTF-8: byte 8 of the line is 0xe4" in check(root, "videomme/test").fault
    (root / "Video-MME/videomme.json").write_bytes(b" \n")
    assert "the file is empty" in check(root, "videomme/test").fault
