import io
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from internvl.data.storage import archives
from internvl.data.storage.archives import Member, open_member, split_member
from internvl.data.storage.media import load_image, read_image_size
from internvl.data.video import load_frames, read_video_info
from internvl.errors import DataError
from tests.data.numbered_videos import read_numbers, write_video
from tests.data.storage.member_files import write_raw_tar, write_raw_zip

NAMES = ["a.png", "in/b.png", "in/deeper/ç.png", "in/" + "long" * 60 + ".png"]


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


WRITERS = {
    "pax.tar": lambda path, members: write_tar(path, members, format=tarfile.PAX_FORMAT),
    "gnu.tar": lambda path, members: write_tar(path, members, format=tarfile.GNU_FORMAT),
    "stored.zip": write_zip,
    "deflated.ZIP": lambda path, members: write_zip(path, members, zipfile.ZIP_DEFLATED),
}


@pytest.fixture(params=WRITERS)
def archive(request, tmp_path):
    path = tmp_path / request.param
    WRITERS[request.param](path, [(name, picture(number)) for number, name in enumerate(NAMES)])
    return path


def test_members_are_read_as_files_are(archive):
    for number, name in enumerate(NAMES):
        assert read_image_size(archive / name) == (20 + number, 10)
        assert load_image(archive / name).getpixel((0, 0)) == (number, 0, 0)
        with open_member(Member(str(archive), name)) as file:
            assert file.read() == picture(number)


def test_members_can_be_sought_in(archive):
    content = picture(1)
    with open_member(Member(str(archive), NAMES[1])) as file:
        assert file.seek(-4, os.SEEK_END) == len(content) - 4
        assert file.read(100) == content[-4:]
        assert file.read(1) == b""
        file.seek(2)
        assert file.read(3) == content[2:5]
        file.seek(len(content) + 10)
        assert file.read(1) == b""


def test_a_missing_member_is_not_found(archive):
    for name in ("none.png", "in", "a.png/b.png"):
        with pytest.raises(DataError, match="not found"):
            read_image_size(archive / name)


def test_an_archive_is_read_through_once(archive, monkeypatch):
    read_image_size(archive / NAMES[0])
    archives._opener().cache_clear()
    monkeypatch.setattr(archives, "_sort_members", None)
    assert load_image(archive / NAMES[3]).size == (23, 10)


def test_a_replaced_archive_is_read_anew(archive):
    assert read_image_size(archive / "a.png") == (20, 10)
    WRITERS[archive.name](archive, [("x.png", picture(5)), ("a.png", picture(7))])
    os.utime(archive, ns=(1, 1))
    assert read_image_size(archive / "a.png") == (27, 10)
    assert load_image(archive / "a.png").getpixel((0, 0)) == (7, 0, 0)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_members_of_one_name_the_last_one_counts_and_a_leading_dot_does_not(archive):
    WRITERS[archive.name](archive, [("a.png", picture(1)), ("./a.png", picture(2)), ("a.png", picture(3))])
    assert load_image(archive / "a.png").getpixel((0, 0)) == (3, 0, 0)


def test_many_members_are_all_found(tmp_path):
    members = [(f"{number % 7}/{number}.bin", str(number).encode()) for number in range(3000)]
    for name in ("many.tar", "many.zip"):
        path = tmp_path / name
        (write_tar if name.endswith("tar") else write_zip)(path, members)
        for number in np.random.default_rng(0).integers(0, 3000, 200):
            with open_member(Member(str(path), f"{number % 7}/{number}.bin")) as file:
                assert file.read() == str(number).encode()


def test_videos_can_lie_in_archives(tmp_path):
    film = write_video(tmp_path / "film.mp4", 30)
    write_tar(tmp_path / "films.tar", [("in/film.mp4", film.read_bytes())])
    member = tmp_path / "films.tar/in/film.mp4"
    assert read_video_info(member) == read_video_info(film)
    assert read_numbers(load_frames(member, [3, 17, 29])) == [3, 17, 29]


def test_links_and_folders_are_no_members(tmp_path):
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    for name in ("link.png", "folder"):
        with pytest.raises(DataError, match="not found"):
            read_image_size(path / name)


def test_a_folder_with_an_archives_name_is_a_folder(tmp_path):
    folder = tmp_path / "folder.tar"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(4))
    assert read_image_size(folder / "a.png") == (24, 10)
    assert split_member(folder / "none.png") is None
    assert split_member(tmp_path / "none.zip/a.png") is None


def test_encrypted_and_oddly_compressed_members_are_refused(tmp_path):
    path = tmp_path / "odd.zip"
    write_zip(path, [("a.png", picture(1))], zipfile.ZIP_LZMA)
    with pytest.raises(
        DataError, match=r"odd\.zip/a\.png is compressed by method 14, expected a member that is stored"
    ):
        load_image(path / "a.png")
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\1\2")
    content[directory + 8] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is encrypted"):
        load_image(path / "a.png")


def test_a_member_that_inflates_beyond_its_size_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    write_zip(path, [("a.png", bytes(10_000_000))], zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    size = content.rindex(b"PK\1\2") + 24
    content[size : size + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"another size than the archive says \(1,000 bytes\)"):
        load_image(path / "a.png")
    content[size : size + 4] = (3 << 30).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="has 3,221,225,472 bytes, expected at most"):
        load_image(path / "a.png")


@pytest.mark.parametrize("kept", [0.01, 0.3])
def test_an_archive_cut_short_is_an_error_of_its_records(archive, kept):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=r"cannot be read|not found"):
        load_image(archive / NAMES[3])


SIZES = [2**31, 2**62, 2**63, 2**64 - 1]


@pytest.mark.parametrize("size", SIZES)
def test_a_zip_member_that_is_larger_than_its_archive_costs_its_record_only(tmp_path, size):
    path = write_raw_zip(tmp_path / "a.zip", [(b"huge.png", picture(1)), (b"a.png", picture(2))], first_size=size)
    assert load_image(path / "a.png").size == (22, 10)
    with pytest.raises(DataError, match=r"a\.zip/huge\.png is not inside of its archive, which is damaged"):
        load_image(path / "huge.png")


@pytest.mark.parametrize("size", [*SIZES, 2**80, -1, -512, -1024, -(2**63)])
def test_a_tar_file_with_an_impossible_size_is_an_error_that_names_it(tmp_path, size):
    marker = (0x80 if size >= 0 else 0xFF).to_bytes(1, "big")
    header = marker + (size % 2**88).to_bytes(11, "big")
    path = write_raw_tar(tmp_path / "a.tar", [(b"huge.png", picture(1)), (b"a.png", picture(2))], first_size=header)
    for name in ("huge.png", "a.png"):
        with pytest.raises(DataError, match=r"archive .*a\.tar cannot be read|not inside of its archive|not found"):
            load_image(path / name)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = write_raw_tar(tmp_path / "a.tar", [(b"a.png", picture(1)), (b"b.png", picture(2)), (b"c.png", picture(3))])
    content = bytearray(path.read_bytes())
    content[content.index(b"b.png")] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"archive .*a\.tar cannot be read: bad checksum at byte 1,024; replace it"):
        load_image(path / "c.png")


@pytest.mark.parametrize("size", ["9" * 40, "9" * 19, "-1", "x", "9" * 400])
def test_a_size_of_a_pax_header_may_be_anything(tmp_path, size):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"size": size}
        info.size = 100
        archive.addfile(info, io.BytesIO(bytes(100)))
    with pytest.raises(DataError, match=r"a\.tar"):
        load_image(path / "a.png")


def test_a_header_that_announces_a_petabyte_does_not_ask_for_memory(tmp_path):
    path = write_raw_tar(tmp_path / "a.tar", [(b"n" * 200, b"x")], first_size=b"\x80" + (2**50).to_bytes(11, "big"))
    with pytest.raises(DataError, match=r"archive .*a\.tar cannot be read|not found"):
        load_image(path / "a.png")


MANY_FILES = """
import os, resource, sys
from internvl.data.storage.archives import Member, open_member
from internvl.data.storage.index import LineFile
folder, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
names = sorted(os.listdir(folder))
lines = [LineFile(os.path.join(folder, name)) for name in names if name.endswith(".jsonl")]
for turn in range(2):
    for number, file in enumerate(lines):
        assert file[0] == b"%d" % number
    for name in names:
        if name.endswith(".zip"):
            with open_member(Member(os.path.join(folder, name), "a.bin")) as file:
                assert file.read() == name.encode()
print(len(os.listdir("/proc/self/fd")))
"""


def test_archives_and_annotations_keep_few_files_open(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(100):
        name = f"{number:03d}.zip"
        write_zip(data / name, [("a.bin", name.encode())])
        (data / f"{number:03d}.jsonl").write_text(str(number))
    for limit in (32, 256):
        done = subprocess.run(
            [sys.executable, "-c", MANY_FILES, str(data), str(limit)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < limit / 2
