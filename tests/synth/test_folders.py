from pathlib import Path

import pytest

from internvl.atomic import stage_folders
from internvl.errors import DataError
from internvl.synth.folders import Origin, check_replaceable, is_finished, write_datasheet

FOLDERS = [Path("a/one"), Path("b")]


def fill(staging, text):
    for folder in FOLDERS:
        (staging / folder).mkdir(parents=True)
        (staging / folder / "file.txt").write_text(text)
        write_datasheet(staging / folder, Origin("me", {"text": text}), {})


def test_folders_appear_when_the_block_ends(tmp_path):
    with stage_folders(tmp_path, FOLDERS) as staging:
        fill(staging, "new")
        assert not any((tmp_path / folder).exists() for folder in FOLDERS)
    assert [(tmp_path / folder / "file.txt").read_text() for folder in FOLDERS] == ["new", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_failure_leaves_what_was_there(tmp_path):
    with stage_folders(tmp_path, FOLDERS) as staging:
        fill(staging, "old")

    def fail():
        with stage_folders(tmp_path, FOLDERS) as staging:
            fill(staging, "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(tmp_path / folder / "file.txt").read_text() for folder in FOLDERS] == ["old", "old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_second_run_replaces_the_folders(tmp_path):
    for text in ("old", "new"):
        with stage_folders(tmp_path, FOLDERS) as staging:
            fill(staging, text)
    assert [(tmp_path / folder / "file.txt").read_text() for folder in FOLDERS] == ["new", "new"]


def test_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "user").mkdir()
    with pytest.raises(DataError, match="not made by me"):
        check_replaceable(tmp_path / "user", Origin("me", {}), overwrite=True)


def test_other_arguments_need_overwrite_and_are_named(tmp_path):
    write_datasheet(tmp_path, Origin("me", {"seed": 0, "size": 1}), {})
    with pytest.raises(DataError, match=r"\(seed\)"):
        check_replaceable(tmp_path, Origin("me", {"seed": 1, "size": 1}), overwrite=False)
    check_replaceable(tmp_path, Origin("me", {"seed": 1, "size": 1}), overwrite=True)
    assert is_finished(tmp_path, Origin("me", {"seed": 0, "size": 1}))
    assert not is_finished(tmp_path, Origin("me", {"seed": 1, "size": 1}))
    assert not is_finished(tmp_path, Origin("you", {"seed": 0, "size": 1}))
