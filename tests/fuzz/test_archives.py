"""Damaged archives: every member is bytes, not found or a DataError; unpacking stays in its folder or says why not."""

import io
import tarfile
import zipfile

import pytest

from eval.convert.unpack import unpack
from internvl.data.storage.archives import Member, open_member
from internvl.data.storage.outage import is_system_fault
from internvl.errors import DataError, EvalError
from tests.fuzz.mutations import list_damaged

NAMES = ["a.png", "in/b.png", "in/deeper/ç.png", "in/" + "long" * 60 + ".png"]
CONTENT = b"some content, some content, " * 20


def write_tar(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in NAMES:
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            archive.addfile(info, io.BytesIO(CONTENT))
    return buffer.getvalue()


def write_zip(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name in NAMES:
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                file.write(CONTENT)
    return buffer.getvalue()


FILES = {
    "pax.tar": write_tar(tarfile.PAX_FORMAT),
    "gnu.tar": write_tar(tarfile.GNU_FORMAT),
    "stored.zip": write_zip(zipfile.ZIP_STORED),
    "deflated.zip": write_zip(zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_damaged_archives_are_members_or_errors(tmp_path, monkeypatch, name, count):
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    num_read, errors = 0, []
    for number, content in enumerate(list_damaged(FILES[name], seed=1, count=count)):
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(content)
        for member in NAMES:
            try:
                with open_member(Member(str(path), member)) as file:
                    num_read += file.read() == CONTENT
            except (DataError, OSError) as error:
                errors.append(error)
        path.unlink()
    assert num_read > 0
    assert not any(is_system_fault(error) for error in errors)


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_damaged_archives_are_unpacked_inside_of_their_folder_or_refused(tmp_path, name, count):
    folder = tmp_path / "around"
    num_files, errors = 0, []
    for number, content in enumerate(list_damaged(FILES[name], seed=2, count=count)):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            num_files += unpack([path], folder / str(number))
        except (DataError, EvalError) as error:
            errors.append(str(error))
    assert num_files > 0
    assert all(name in error for error in errors)
    assert {path.name for path in tmp_path.iterdir()} == {"around", name}
    assert all(path.name.isdigit() for path in folder.iterdir())
