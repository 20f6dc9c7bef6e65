import logging
import os
import struct
import tarfile
import unicodedata
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.convert.unpack import main, unpack
from internvl.data.storage.archives import Member, open_member
from internvl.data.storage.member_names import decode_name, list_keys, list_spellings
from internvl.errors import ConfigError, DataError
from tests.data.storage.member_files import write_raw_tar, write_raw_zip

NAME = "图片/中文猫.png"
WRITERS = {"a.zip": write_raw_zip, "a.tar": write_raw_tar}


def read(archive, name: str) -> bytes:
    with open_member(Member(str(archive), name)) as file:
        return file.read()


def list_files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    return lambda members, **options: WRITERS[request.param](tmp_path / request.param, members, **options)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_names_in_utf8_are_found_and_unpacked_in_any_normal_form(write, tmp_path, form, asked):
    name = "é/한글 Å.png"
    archive = write([(unicodedata.normalize(form, name).encode(), b"content")])
    assert read(archive, unicodedata.normalize(asked, name)) == b"content"
    assert unpack([archive], tmp_path / "out") == 1
    assert list_files(tmp_path / "out") == {unicodedata.normalize("NFC", name): b"content"}


@pytest.mark.parametrize("is_flagged", [True, False])
def test_the_flag_of_zip_files_does_not_matter_for_utf8(tmp_path, caplog, is_flagged):
    archive = write_raw_zip(tmp_path / "a.zip", [(NAME.encode(), b"cat")], is_flagged=is_flagged)
    assert read(archive, NAME) == b"cat"
    unpack([archive], tmp_path / "out")
    assert list_files(tmp_path / "out") == {NAME: b"cat"}
    assert ("names do not say their encoding" in caplog.text) != is_flagged


def test_an_exact_name_comes_before_another_form_of_it(write):
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    archive = write([(names[0].encode(), b"c"), (names[1].encode(), b"d"), (b"a/b", b"slash"), (rb"a\b", b"back")])
    assert [read(archive, name) for name in (*names, "a/b", r"a\b")] == [b"c", b"d", b"slash", b"back"]


def test_backslashes_separate_folders(write, tmp_path):
    archive = write([(rb"in\deep\b.png", b"b"), (rb".\a.png", b"a")])
    assert read(archive, "in/deep/b.png") == read(archive, r"in\deep/b.png") == b"b"
    assert read(archive, "a.png") == b"a"
    unpack([archive], tmp_path / "out")
    assert list_files(tmp_path / "out") == {"in/deep/b.png": b"b", "a.png": b"a"}


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        (NAME, "gbk"),
        ("图/猫.png", "gbk"),  # these bytes are UTF-8 too, of another text
        ("圖片/貓.png", "big5"),
        ("表/ソ.png", "shift_jis"),  # the second bytes of both characters are backslashes
        ("été.png", "cp437"),
        ("été.png", "latin-1"),
        ("кот.png", "cp866"),
        ("고양이.png", "euc_kr"),
    ],
)
def test_names_in_other_encodings_are_found(write, tmp_path, name, encoding):
    archive = write([(b"first.png", b"1"), (name.encode(encoding), b"content")])
    assert read(archive, name) == b"content"
    assert unpack([archive], tmp_path / "out", name_encoding=encoding) == 2
    assert list_files(tmp_path / "out") == {name: b"content", "first.png": b"1"}


def test_names_that_cannot_be_decoded_are_said(write, tmp_path, caplog, capsys):
    archive = write([(NAME.encode("gbk"), b"cat")])
    assert main([str(archive), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "is not UTF-8" in error
    assert f"gbk {NAME!r}" in error
    assert "--name_encoding" in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="is not in ascii, expected another --name_encoding"):
        unpack([archive], tmp_path / "out", name_encoding="ascii")
    with pytest.raises(ConfigError, match="--name_encoding klingon is unknown"):
        unpack([archive], tmp_path / "out", name_encoding="klingon")
    with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError):
        read(archive, "another.png")
    assert "1 names are in another encoding than UTF-8" in caplog.text


def test_a_zip_file_may_say_its_names_in_an_extra_field(tmp_path):
    plain = b"___.png"
    field = struct.pack("<BI", 1, zlib.crc32(plain)) + NAME.encode()
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    archive = write_raw_zip(tmp_path / "a.zip", [(plain, b"cat")], extra=extra)
    assert read(archive, NAME) == b"cat"
    unpack([archive], tmp_path / "out", name_encoding="gbk")
    assert list_files(tmp_path / "out") == {NAME: b"cat"}


def test_names_of_pax_headers_are_utf8_whatever_the_others_are(tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(tarfile.TarInfo(NAME))
    unpack([archive], tmp_path / "out", name_encoding="gbk")
    assert list_files(tmp_path / "out") == {NAME: b""}


@pytest.mark.parametrize(
    "name", ["../evil", r"..\evil", r"in\..\..\evil", "/evil", r"\evil", r"C:\evil", r"\\host\evil"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "shift_jis"])
def test_no_name_leaves_the_folder_in_any_encoding(write, tmp_path, name, encoding):
    archive = write([(name.encode(encoding), b"evil")])
    with pytest.raises(DataError, match="leads out of its folder"):
        unpack([archive], tmp_path / "deep/out", name_encoding=encoding)
    assert not list(tmp_path.rglob("*evil*"))


def test_two_names_of_one_file_are_refused(write, tmp_path):
    archive = write([(b"a/b.png", b"1"), (rb"a\b.png", b"2")])
    with pytest.raises(DataError, match="mean the same file"):
        unpack([archive], tmp_path / "out")


@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12))
def test_any_name_finds_itself(name):
    for form in ("NFC", "NFD"):
        stored = unicodedata.normalize(form, name)
        assert set(list_keys(stored.encode())) & set(list_spellings(name))
        assert decode_name(stored.encode()) == unicodedata.normalize("NFC", name)


def test_a_root_inside_of_an_archive_may_have_any_name(tmp_path, monkeypatch):
    archive = write_raw_zip(tmp_path / "a.zip", [(NAME.encode("gbk"), b"cat")])
    folder, file = os.path.split(NAME)
    with open_member(Member(str(archive), f"{folder}/./{file}")) as opened:
        assert opened.read() == b"cat"
