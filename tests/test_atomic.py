"""A file or folder has its old content or its new one, never something between."""

import json
import threading

import pytest

from internvl.atomic import (
    open_atomically,
    publish_folder,
    remove_folder,
    replace_files,
    stage_folders,
    write_atomically,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    with pytest.raises(ZeroDivisionError), open_atomically(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_threads_that_write_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    contents = [letter * 100_000 for letter in "abcdefgh"]
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents
    assert names(tmp_path) == ["a.txt"]


def test_json_on_one_line_has_no_byte_that_could_be_lost_unseen(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, 2]}, indent=None)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{"ä":[1,2]}'
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(text[:-1])


def test_a_published_folder_replaces_the_old_one_whole(tmp_path):
    draft, final = tmp_path / "draft", tmp_path / "final"
    for folder, name in ((draft, "new"), (final, "old")):
        folder.mkdir()
        (folder / name).touch()
    publish_folder(draft, final)
    assert names(tmp_path) == ["final"]
    assert names(final) == ["new"]


def test_removing_what_is_not_there_is_fine(tmp_path):
    remove_folder(tmp_path / "missing")
    assert names(tmp_path) == []


def test_staged_folders_appear_only_when_the_block_ends_well(tmp_path):
    with pytest.raises(FileNotFoundError), stage_folders(tmp_path, ["a"]) as staging:
        (staging / "a" / "missing" / "b").mkdir()
    assert names(tmp_path) == []
    with stage_folders(tmp_path, ["a"]) as staging:
        (staging / "a").mkdir()
    assert names(tmp_path) == ["a"]


def test_replaced_files_leave_others_alone(tmp_path):
    (tmp_path / "other").touch()
    seen = []
    with replace_files(tmp_path, last="config", before_moving=seen.append) as staging:
        for name in ("config", "weights"):
            (staging / name).touch()
    assert seen == [{"config", "weights"}]
    assert names(tmp_path) == ["config", "other", "weights"]
