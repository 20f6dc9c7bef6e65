"""Archives of benchmarks: unpacked whole, and never outside of their folder."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from eval.convert.unpack import group_parts, main, unpack
from internvl.errors import DataError, EvalError

FILES = {"SET/SET.json": b'{"data": []}', "SET/images/1.png": bytes(range(256)) * 40, "./top.txt": b""}


def add(archive, name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), 1_700_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


def write_tar(path, files=FILES, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        add(archive, "SET", type=tarfile.DIRTYPE)
        for name, content in files.items():
            add(archive, name, content)
    return path


def write_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("SET")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def split(path, num_bytes, endings):
    content = path.read_bytes()
    parts = [path.with_name(f"{path.name}.{ending}") for ending in endings]
    for number, part in enumerate(parts):
        part.write_bytes(content[number * num_bytes :][: None if part == parts[-1] else num_bytes])
    path.unlink()
    return parts


def read_folder(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_killed_run_left_is_removed_and_files_of_the_user_stay(tmp_path):
    archive, out = write_tar(tmp_path / "a.tar.gz", FILES | {".kept.0123abcd": b"x"}), tmp_path / "out"
    (out / "SET").mkdir(parents=True)
    for name in ("SET/.SET.json.0123abcd", ".mine.0123abcd", "SET/.SET.json.txt"):
        (out / name).write_text("half")
    unpack([archive], out)
    unpack([archive], out)
    files = {"SET/SET.json", "SET/images/1.png", "top.txt", ".kept.0123abcd", ".mine.0123abcd", "SET/.SET.json.txt"}
    assert set(read_folder(out)) == files


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "a.tar.bz2"])
def test_files_arrive_with_their_content(tmp_path, name):
    modes = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.bz2": "w:bz2"}
    path = tmp_path / name
    write_zip(path) if name == "a.zip" else write_tar(path, mode=modes[name])
    assert unpack([path], tmp_path / "out") == 3
    assert read_folder(tmp_path / "out") == {name.removeprefix("./"): content for name, content in FILES.items()}


@pytest.mark.parametrize(
    ("name", "endings"),
    [("a.tar.gz", ["partaa", "partab", "partac"]), ("a.zip", ["001", "002", "003"]), ("a.tar", ["partaa", "partab"])],
)
def test_parts_of_an_archive_are_joined_in_order(tmp_path, name, endings):
    path = tmp_path / name
    write_zip(path) if name == "a.zip" else write_tar(path, mode="w:gz" if name.endswith("gz") else "w")
    parts = split(path, path.stat().st_size // len(endings), endings)
    assert unpack(parts[::-1], tmp_path / "out") == 3
    assert (tmp_path / "out/SET/images/1.png").read_bytes() == FILES["SET/images/1.png"]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_part_that_is_not_there_is_noticed(tmp_path, lost):
    parts = split(write_tar(tmp_path / "a.tar.gz"), 100, ["partaa", "partab", "partac", "partad"])
    with pytest.raises(DataError, match="parts are missing; there are"):
        group_parts(parts[:lost] + parts[lost + 1 :] if lost else [*parts[2:]])


def test_a_last_part_that_is_not_there_is_a_cut_off_archive(tmp_path):
    parts = split(write_tar(tmp_path / "a.tar.gz"), 150, ["partaa", "partab"])
    with pytest.raises(DataError, match="broken or cut off"):
        unpack(parts[:1], tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["../evil", "SET/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "C:/evil", "..", "SET/a/../../../evil"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_name_leads_out_of_the_folder(tmp_path, kind, name):
    write = write_tar if kind == "tar" else write_zip
    path = write(tmp_path / f"a.{kind}", {name: b"evil"}, **({"mode": "w"} if kind == "tar" else {}))
    out = tmp_path / "deep" / "out"
    with pytest.raises(DataError, match="leads out of its folder"):
        unpack([path], out)
    assert not list(tmp_path.rglob("*evil*"))
    assert not read_folder(tmp_path / "deep")


@pytest.mark.parametrize("time", ["inf", "nan", "-5", "1" + "0" * 19])
def test_odd_times_do_not_matter(tmp_path, time):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "a.txt", b"text", pax_headers={"mtime": time})
    for _ in range(2):
        assert unpack([tmp_path / "a.tar"], tmp_path / "out") == 1
    assert read_folder(tmp_path / "out") == {"a.txt": b"text"}


@pytest.mark.parametrize("name", ["n" * 300, "/".join(["n" * 200] * 30)])
def test_a_name_that_is_too_long_is_named(tmp_path, name):
    path = write_tar(tmp_path / "a.tar.gz", {name: b"x"})
    with pytest.raises(EvalError, match=r"cannot write .*nnn.*File name too long"):
        unpack([path], tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "link", type=kind, linkname="../..")
        add(archive, "link/evil", b"evil")
    with pytest.raises(DataError, match="'link' is a link or a device"):
        unpack([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path.parent / "evil").exists()


def test_a_link_in_a_zip_file_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc")
    with pytest.raises(DataError, match="'link' is a link or a device"):
        unpack([path], tmp_path / "out")


def test_a_link_of_the_user_that_leaves_the_folder_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "SET").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="through a link"):
        unpack([write_tar(tmp_path / "a.tar.gz")], tmp_path / "out")
    assert not read_folder(tmp_path / "elsewhere")


def test_files_that_are_there_are_not_written_again(tmp_path):
    path, out = write_tar(tmp_path / "a.tar.gz"), tmp_path / "out"
    unpack([path], out)
    kept, changed = out / "SET/SET.json", out / "SET/images/1.png"
    before = kept.stat().st_ino
    changed.write_bytes(b"cut off")
    assert unpack([path], out) == 3
    assert kept.stat().st_ino == before
    assert changed.read_bytes() == FILES["SET/images/1.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "broken or cut off"), (b"no archive" * 100, "broken or cut off"), (None, "not found")],
)
@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_what_is_no_archive_ends_with_a_clear_error(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_zip_file_that_ends_early_leaves_no_half_file(tmp_path):
    path = write_tar(tmp_path / "a.tar", mode="w")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DataError, match="broken or cut off"):
        unpack([path], tmp_path / "out")
    assert all(FILES[name] == content for name, content in read_folder(tmp_path / "out").items())


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_an_archive_that_ends_between_two_files_is_cut_off(tmp_path, mode):
    path = write_tar(tmp_path / "a.tar", mode=mode)
    whole = {"w": 512 + 512 + 512, "w:gz": path.stat().st_size - 40, "w:xz": path.stat().st_size - 60}[mode]
    path.write_bytes(path.read_bytes()[:whole])
    with pytest.raises(DataError, match="broken or cut off"):
        unpack([path], tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, mode):
    path = write_tar(tmp_path / "a.tar", mode="w")
    content = bytearray(path.read_bytes())
    content[content.index(b"SET/images")] ^= 1
    path.write_bytes(gzip.compress(content) if mode == "w:gz" else content)
    with pytest.raises(DataError, match=r"the archive is broken or cut off \(bad checksum"):
        unpack([path], tmp_path / "out")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(28, os.strerror(28))

    path = write_tar(tmp_path / "a.tar.gz")
    open_file = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **kwargs: Full() if mode == "wb" else open_file(path, mode, **kwargs)
    )
    with pytest.raises(EvalError, match=r"cannot write .*No space left on device.*free space"):
        unpack([path], tmp_path / "out")
    assert not read_folder(tmp_path / "out")
