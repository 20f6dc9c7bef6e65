import gzip
import json
import os

import pytest

from internvl.data.storage import annotation as annotation_module
from internvl.data.storage import cache as cache_module
from internvl.data.storage.annotation import AnnotationFile
from internvl.data.storage.cache import is_cached


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("INTERNVL_CACHE", str(folder))
    return folder


@pytest.fixture
def annotation(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    return path


def read(path) -> list:
    file = AnnotationFile(path)
    return [json.loads(file[row]) for row in range(len(file))]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")
def test_files_of_other_users_do_not_count_where_anyone_can_write(cache, annotation):
    expected = read(annotation)
    for file in (cache / "annotations-1").iterdir():
        time = file.stat().st_mtime_ns
        file.write_bytes(b'{"a": 3}\n' + annotation_module._END)
        os.utime(file, ns=(time, time))
    assert read(annotation) == [{"a": 3}]  # one's own files are trusted
    for file in cache.rglob("*"):
        os.chown(file, 12345, 12345)
    assert read(annotation) == expected


def test_files_of_other_users_count_where_only_some_can_write(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    assert is_cached(path)
    monkeypatch.setattr(cache_module, "_is_own", lambda _: False)
    monkeypatch.setattr(type(path), "parents", [tmp_path])  # those above it are below /tmp
    for mode, counts in ((0o755, True), (0o775, True), (0o777, False), (0o1777, False)):
        tmp_path.chmod(mode)
        assert is_cached(path) == counts


def test_links_do_not_count(tmp_path, cache, annotation):
    expected = read(annotation)
    for file in [file for file in cache.rglob("*") if file.is_file()]:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(b'{"a": 3}\n' + annotation_module._END)
        file.unlink()
        file.symlink_to(elsewhere)
    assert read(annotation) == expected
    assert elsewhere.read_bytes().startswith(b'{"a": 3}')
    assert not any(file.is_symlink() for file in cache.rglob("*"))


def test_an_index_of_another_format_is_made_again(cache, annotation):
    expected = read(annotation)
    for file in (cache / "lines-1").iterdir():
        file.write_bytes(b"INVLIDX9" + file.read_bytes()[8:])
    assert read(annotation) == expected
