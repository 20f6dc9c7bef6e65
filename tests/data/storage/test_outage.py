import errno
import logging
import os
import urllib.error
from pathlib import Path

import av
import pytest

from internvl.data.storage import outage
from internvl.data.storage.outage import DataOutage, OutageWatch, find_folders, is_system_fault, is_there
from internvl.errors import DataError


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    (path / "a.png").write_text("picture")
    return path


@pytest.fixture
def clock(monkeypatch):
    """Time that only passes in sleep(); `pauses` are those slept, `events` is called before each of them ends."""

    class Clock:
        now = 0.0

        def __init__(self):
            self.pauses, self.events = [], {}

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds
            self.pauses.append(seconds)
            self.events.get(len(self.pauses), lambda: None)()

    clock = Clock()
    monkeypatch.setattr(outage, "time", clock)
    return clock


def read(folder: Path) -> str:
    path = folder / "a.png"
    if not path.is_file():
        raise DataError(f"image {path} not found")
    return path.read_text()


def hide(folder: Path, how: str) -> Path:
    """As an unmounted folder looks (empty), or as one on a lost server (not there)."""
    away = folder.rename(folder.with_name("away"))
    if how == "empty":
        folder.mkdir()
    return away


@pytest.mark.parametrize("how", ["empty", "missing"])
def test_reading_waits_until_the_folder_is_back(folder, clock, caplog, how):
    watch = OutageWatch(find_folders([folder]))
    away = hide(folder, how)
    clock.events[3] = lambda: away.rename(folder)
    with caplog.at_level(logging.WARNING):
        assert watch.read(lambda: read(folder)) == "picture"
    assert clock.pauses == [1, 2, 4]
    assert f"{folder} is out of reach" in caplog.text


def test_a_file_missing_from_a_folder_that_is_there_is_not_waited_for(folder, clock):
    (folder / "a.png").unlink()
    (folder / "b.png").touch()
    with pytest.raises(DataError, match="not found"):
        OutageWatch(find_folders([folder])).read(lambda: read(folder))
    assert clock.pauses == []


def test_a_folder_that_was_never_there_is_a_wrong_path(tmp_path, clock):
    (tmp_path / "other").touch()
    watch = OutageWatch(find_folders([tmp_path / "nowhere" / "images"]))
    assert watch.folders == (tmp_path,)
    with pytest.raises(DataError, match="not found"):
        watch.read(lambda: read(tmp_path / "nowhere" / "images"))
    assert clock.pauses == []


def test_an_outage_without_end_ends_the_run(folder, clock):
    watch = OutageWatch(find_folders([folder]), bearable_s=100)
    hide(folder, "missing")
    with pytest.raises(DataOutage, match=r"images is out of reach for 100 s; image .* not found"):
        watch.read(lambda: read(folder))
    assert clock.pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_other_errors_go_through(folder, clock):
    hide(folder, "missing")
    with pytest.raises(KeyError):
        OutageWatch((folder,)).read(lambda: {}["key"])


def test_what_is_watched(folder, tmp_path):
    archive = tmp_path / "images.zip"
    archive.touch()
    paths = [folder, archive / "train", "s3://bucket/images", None, str(folder / "a.png"), folder]
    assert find_folders(paths) == (folder, archive, folder / "a.png")
    assert is_there(folder)
    assert not is_there(folder / "b.png")


SYSTEM_FAULTS = ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "ENOSPC", "EDQUOT"]


def wrap(cause: BaseException, *, hidden: bool = False) -> DataError:
    """The error of a record that was made of another one, as parsers' callers do it."""
    try:
        try:
            raise cause
        except BaseException as error:
            raise DataError("image a.png cannot be read") from (None if hidden else error)
    except DataError as error:
        return error.at("set", 3) if not hidden else error


@pytest.mark.parametrize("name", SYSTEM_FAULTS)
def test_faults_of_the_system_are_seen_through_what_was_made_of_them(name):
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    assert is_system_fault(error)
    assert is_system_fault(wrap(error, hidden=True))
    assert is_system_fault(urllib.error.URLError(error))


def test_ffmpeg_may_run_out_of_files_too():
    assert is_system_fault(av.error.OSError(errno.EMFILE, "Too many open files"))


@pytest.mark.parametrize(
    "error",
    [
        None,
        OSError("cannot identify image file"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        OSError(errno.EINVAL, "Invalid argument"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("bad"),
        DataError("bad"),
        wrap(MemoryError(), hidden=True),
        av.error.OSError(errno.EIO, "Input/output error"),
    ],
)
def test_faults_of_data_are_no_faults_of_the_system(error):
    assert not is_system_fault(error)


@pytest.mark.parametrize("cause", [MemoryError(), OSError(errno.ESTALE, "Stale file handle")])
def test_a_fault_of_the_system_is_waited_for(folder, clock, caplog, cause):
    causes = [cause, cause, None]

    def read_after_faults() -> str:
        if (error := causes.pop(0)) is not None:
            raise error
        return "picture"

    assert OutageWatch(find_folders([folder])).read(read_after_faults) == "picture"
    assert clock.pauses == [1, 2]
    assert "the system cannot read data, trying again in 2 s" in caplog.text


def test_a_fault_of_the_system_without_end_ends_the_run(clock):
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(DataOutage, match=r"the system cannot read data for 100 s; .*Too many open files"):
        OutageWatch(bearable_s=100).read(fail)
