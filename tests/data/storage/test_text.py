import codecs
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.data.meta import SourceSpec, load_meta
from internvl.data.records import RecordFile
from internvl.data.storage.annotation import AnnotationFile
from internvl.data.storage.text import decode_text, read_lines, read_text
from internvl.errors import ConfigError, DataError
from tests.data.conftest import conversation

TEXT = "é 图\nzwei 😀\n"
# How a text may be stored, whatever the file is for.
FORMS = {
    "utf-8": b"" + TEXT.encode(),
    "utf-8 with mark": codecs.BOM_UTF8 + TEXT.encode(),
    "utf-16 le": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16 be": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-32 le": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "utf-32 be": codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
}
CODECS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]  # those of Python that write a mark, and plain UTF-8


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_unicode_is_the_same_text_without_its_mark(tmp_path, form):
    path = tmp_path / "a.txt"
    path.write_bytes(FORMS[form])
    assert decode_text(FORMS[form], "a") == read_text(path) == TEXT
    assert [line.rstrip("\n") for _, line in read_lines(path)][:2] == ["é 图", "zwei 😀"]


@given(text=st.text(max_size=20), codec=st.sampled_from(CODECS[1:]))
def test_any_text_comes_back(text, codec):
    assert decode_text(text.encode(codec), "a") == text


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_lines_of_a_whole_text_end_in_one_way(tmp_path, ends):
    (tmp_path / "a.txt").write_bytes(TEXT.replace("\n", ends).encode("utf-16"))
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nStraße".encode("latin-1"), r"a\.txt: line 2 is not UTF-8: byte 5 of the line is 0xdf; convert the file"),
        ("中文字幕".encode("gbk"), "line 1 is not UTF-8: .*iconv"),
        (codecs.BOM_UTF16_LE + b"a", "line 1 is not UTF-16"),
        (codecs.BOM_UTF32_LE + b"\xff" * 4, "line 1 is not UTF-32"),
        ("text".encode("utf-16-le"), "begins with zero bytes, as UTF-16 and UTF-32 without a byte order mark"),
        ("text".encode("utf-32-be"), "begins with zero bytes, as UTF-16 and UTF-32 without a byte order mark"),
        (b"\xed\xa0\x80", "line 1 is not UTF-8"),  # half a surrogate pair
    ],
)
def test_anything_else_is_refused_with_its_name(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(path)
    with pytest.raises(DataError, match=message):
        list(read_lines(path))


def test_what_cannot_be_read_is_a_data_error(tmp_path):
    for read in (read_text, lambda path: list(read_lines(path))):
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_annotations_may_be_in_any_form_of_unicode(tmp_path, name, codec):
    rows = [{"conversations": conversation(f"图 {number}", "😀 é")} for number in range(300)]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    text = json.dumps(rows, ensure_ascii=False, indent=1) if name == "a.json" else lines
    content = text.encode(codec)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    file = AnnotationFile(path)
    assert [json.loads(file[row]) for row in range(len(file))] == rows
    record = RecordFile(SourceSpec("any", annotation=path))[0]
    assert record.turns == (("user", "图 0"), ("assistant", "😀 é"))


@pytest.mark.parametrize("codec", ["utf-16", "utf-32", "utf-8"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_wrong_character_costs_its_record_only(tmp_path, name, codec):
    good = '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}'
    bad = good.replace("q", "\udcff")
    errors = "surrogateescape" if codec == "utf-8" else "surrogatepass"
    text = f"[{good},{bad},{good}]" if name == "a.json" else f"{good}\n{bad}\n{good}\n"
    content = text.encode(codec, errors)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    file = RecordFile(SourceSpec("any", annotation=path))
    assert len(file) == 3
    assert file[0].turns == file[2].turns
    with pytest.raises(DataError, match=r"any, row 1: not a json line: 'utf-8' codec can't decode"):
        file[1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
@pytest.mark.parametrize("cut", [False, True])
def test_annotations_without_their_mark_or_end_are_refused(tmp_path, name, cut):
    content = codecs.BOM_UTF16_LE + "[{}]".encode("utf-16-le")[:-1] if cut else "[{}]".encode("utf-16-le")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    expected = "truncated data" if cut else "zero bytes, as UTF-16"
    with pytest.raises(ConfigError, match=rf"annotation .*{name} cannot be read: .*{expected}"):
        AnnotationFile(tmp_path / name)


@pytest.mark.parametrize("codec", CODECS)
def test_meta_files_may_be_in_any_form_of_unicode(tmp_path, codec):
    (tmp_path / "ü.jsonl").touch()
    path = tmp_path / "meta.json"
    path.write_bytes(json.dumps({"d": {"annotation": "ü.jsonl"}}, ensure_ascii=False).encode(codec))
    assert load_meta(path)[0].annotation == tmp_path / "ü.jsonl"
    path.write_bytes(b'{"\xff": {}}')
    with pytest.raises(ConfigError, match=r"cannot be read: line 1 is not UTF-8: byte 3 .* check --meta_path"):
        load_meta(path)
