import gzip
import json
import os
import pickle
import sys
import tempfile
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from internvl.data.meta import SourceSpec
from internvl.data.records import RecordFile
from internvl.data.storage import annotation as annotation_module
from internvl.data.storage import index as index_module
from internvl.data.storage.annotation import AnnotationFile
from internvl.data.storage.cache import cache_folder, write_cached_file
from internvl.data.storage.index import LineFile
from internvl.errors import ConfigError, MissingDependencyError
from tests.data.conftest import conversation


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("INTERNVL_CACHE", str(folder))
    return folder


def make_rows(num_rows: int) -> list[dict]:
    texts = ['plain "quotes" \\ and ]},[{', "zwei\nZeilen\r\n\t", "你好 ☃ \u2028", ""]
    return [
        {
            "id": row,
            "image": None if row % 3 else [f"{row}.png", "b c.png"],
            "conversations": conversation(f"q {row} {texts[row % 4]}", "a" * (1 + row % 500)),
        }
        for row in range(num_rows)
    ]


def write_annotation(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


FORMS = ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"]


@pytest.mark.parametrize("name", FORMS)
def test_all_forms_give_the_same_rows_in_any_order(tmp_path, name):
    rows = make_rows(1000)
    file = AnnotationFile(write_annotation(tmp_path / name, rows))
    assert len(file) == 1000
    for row in (999, 0, 500, 17, 17):
        read = json.loads(file[row])
        assert {key: read[key] for key in ("image", "conversations")} == {
            key: rows[row][key] for key in ("image", "conversations")
        }


@pytest.mark.parametrize("name", FORMS)
def test_records_are_read_from_all_forms(tmp_path, name):
    rows = [row for row in make_rows(4) if row["image"] is None or row["id"] == 0]
    rows[0]["conversations"][0]["value"] = "<image><image> q"
    path = write_annotation(tmp_path / name, rows)
    file = RecordFile(SourceSpec("any", annotation=path, root=tmp_path))
    assert file[0].image_paths == (tmp_path / "0.png", tmp_path / "b c.png")
    assert file[1].turns[1] == ("assistant", "aa")


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_written_beside_the_data_and_no_form_is_indexed_twice(tmp_path, monkeypatch, name):
    data = tmp_path / "data"
    data.mkdir()
    path = write_annotation(data / name, make_rows(50))
    first = AnnotationFile(path)
    assert os.listdir(data) == [name]
    monkeypatch.setattr(index_module, "find_lines", None)
    monkeypatch.setattr(annotation_module, "_write_lines", None)
    assert [AnnotationFile(path)[row] for row in range(50)] == [first[row] for row in range(50)]


@pytest.mark.parametrize("name", FORMS)
def test_a_changed_file_is_indexed_anew(tmp_path, name):
    path = write_annotation(tmp_path / name, make_rows(50))
    assert len(AnnotationFile(path)) == 50
    write_annotation(path, make_rows(70)[20:])
    os.utime(path, ns=(1, 1))
    file = AnnotationFile(path)
    assert len(file) == 50
    assert json.loads(file[0])["conversations"] == make_rows(70)[20]["conversations"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "flipped"])
def test_a_damaged_cache_is_made_anew(tmp_path, cache, name, damage):
    path = write_annotation(tmp_path / name, make_rows(50))
    expected = [AnnotationFile(path)[row] for row in range(50)]
    for file in [file for file in cache.rglob("*") if file.is_file()]:
        content = file.read_bytes()
        if damage == "flipped" and file.parent.name.startswith("lines"):
            content = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        elif damage != "flipped":
            content = {"empty": b"", "cut": content[:-9], "garbage": b"\xff" * len(content)}[damage]
        file.write_bytes(content)
    file = AnnotationFile(path)
    assert [file[row] for row in range(50)] == expected
    assert len(file) == 50


@pytest.mark.parametrize("name", FORMS)
def test_a_cache_that_cannot_be_written_is_noted_and_done_without(tmp_path, monkeypatch, caplog, name):
    (tmp_path / "no_folder").write_text("")
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "no_folder"))
    path = write_annotation(tmp_path / name, make_rows(50))
    files = [AnnotationFile(path) for _ in range(3)]
    assert all(json.loads(file[49])["conversations"] == make_rows(50)[49]["conversations"] for file in files)
    notes = [record.message for record in caplog.records if "INTERNVL_CACHE" in record.message]
    assert len(notes) == len(set(notes)) == 1
    assert str(tmp_path / "no_folder") in notes[0]


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("INTERNVL_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("INTERNVL_CACHE")
    assert cache_folder() == Path("/xdg/internvl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/internvl"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_folder() == Path(tempfile.gettempdir(), f"internvl-{os.getuid()}")


def test_cached_files_can_be_read_by_others(tmp_path, cache):
    AnnotationFile(write_annotation(tmp_path / "a.json", make_rows(3)))
    modes = {file.stat().st_mode & 0o777 for file in cache.rglob("*") if file.is_file()}
    assert modes == {0o644}


def _break_off(path: Path) -> None:
    with write_cached_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_a_writer_that_is_broken_off_leaves_nothing(cache):
    with pytest.raises(KeyboardInterrupt):
        _break_off(cache / "kind" / "a-b")
    assert list((cache / "kind").iterdir()) == []


def _open_and_read(path: Path) -> list[bytes]:
    file = AnnotationFile(path)
    return [file[row] for row in range(0, len(file), 100)]


@pytest.mark.parametrize("name", FORMS)
def test_processes_that_open_at_the_same_time_agree(tmp_path, cache, name):
    path = write_annotation(tmp_path / name, make_rows(2000))
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        results = list(pool.map(_open_and_read, [path] * 8))
    assert all(result == results[0] for result in results)
    assert len(results[0]) == 20
    assert not list(cache.rglob(".tmp-*"))


@pytest.mark.parametrize("name", FORMS)
def test_a_file_can_be_sent_to_another_process_without_its_index(tmp_path, name):
    file = AnnotationFile(write_annotation(tmp_path / name, make_rows(5000)))
    sent = pickle.dumps(file)
    assert len(sent) < 2000
    assert pickle.loads(sent)[4999] == file[4999]


def test_only_the_newest_version_stays_in_the_cache(tmp_path, cache):
    for count in (10, 20, 30):
        AnnotationFile(write_annotation(tmp_path / "a.jsonl.gz", make_rows(count)))
    assert len(list((cache / "annotations-1").iterdir())) == 1


@pytest.mark.parametrize("content", ["", "[]", " [ ] \n", "[1,2 , -3.5]", '["a\\"]", {"b": [1, {}]} ,null,true,[[]]]'])
def test_arrays_of_any_elements_are_taken_apart(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content or "\ufeff[7]", encoding="utf-8")
    file = AnnotationFile(path)
    expected = json.loads(content) if content else [7]
    assert [json.loads(file[row]) for row in range(len(file))] == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=4),
)


@settings(max_examples=60)
@given(values=st.lists(json_values, max_size=8), indent=st.sampled_from([None, 0, 3]), chunk=st.integers(1, 30))
@example(values=[0.0], indent=None, chunk=1)
@example(values=[0.0, 1e-7, -2.5e20], indent=None, chunk=1)
@example(values=[[-1.5e-300, True], {"é": None, "a": "\ud83d\ude00"}, False], indent=None, chunk=1)
def test_any_array_survives_whatever_the_chunks_are(tmp_path_factory, values, indent, chunk):
    path = tmp_path_factory.mktemp("arrays") / "a.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8", errors="replace")
    expected = json.loads(path.read_text(encoding="utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation_module, "_TEXT_CHUNK", chunk)
        file = AnnotationFile(path)
    assert [json.loads(file[row]) for row in range(len(file))] == expected


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("", "got 'nothing' at its beginning, expected"),
        ('{"conversations": []}\n{}', r"got '\{' at its beginning, .* files with a record per line end in \.jsonl"),
        ("[1, 2", "the file ends too early"),
        ("[1 2]", "got '2]' after element 0, expected a comma"),
        ("[1,, 2]", "element 1 of the array is not json: Expecting value"),
        ('[{"a": x}' + " " * 100_000, "element 0 of the array is not json: Expecting value"),
        ('[{"a": "x]', "element 0 of the array is not json: Unterminated string"),
        ("[1] x", "got text after the closing"),
        ("[" * 200_000, "element 0 of the array is not json: .*recursion"),
    ],
)
def test_broken_arrays_are_refused_with_their_cause(tmp_path, cache, content, cause):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"annotation .*a\.json cannot be read: .*{cause}"):
        AnnotationFile(path)
    assert not [file for file in cache.rglob("*") if file.is_file()]


@pytest.mark.parametrize("name", FORMS[1:])
@pytest.mark.parametrize("damage", [b"", b"no such file", None], ids=["empty", "garbage", "cut"])
def test_damaged_files_are_refused(tmp_path, name, damage):
    path = write_annotation(tmp_path / name, make_rows(500))
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    if name.endswith(".gz") and damage == b"":
        assert len(AnnotationFile(path)) == 0  # gzip takes an empty file for an empty stream
        return
    with pytest.raises(ConfigError, match=rf"annotation .*{name} cannot be read"):
        AnnotationFile(path)


def test_parquet_needs_a_column_of_conversations_without_bytes(tmp_path):
    path = write_annotation(tmp_path / "a.parquet", [{"text": "q", "image": "a.png"}])
    with pytest.raises(ConfigError, match="columns text, image, expected a column 'conversations'"):
        AnnotationFile(path)
    write_annotation(path, [{"conversations": conversation("q", "a"), "image": {"bytes": b"x"}}])
    with pytest.raises(ConfigError, match="a cell holds a value of type bytes"):
        AnnotationFile(path)


def test_a_column_of_parquet_that_looks_like_ours_is_named(tmp_path):
    path = write_annotation(tmp_path / "a.parquet", [{"conversations": conversation("q", "a"), "images": ["a.png"]}])
    with pytest.raises(ConfigError, match="it has a column 'images', did you mean 'image'"):
        AnnotationFile(path)


def test_parquet_without_its_package_names_the_pip_line(tmp_path, monkeypatch):
    path = write_annotation(tmp_path / "a.parquet", make_rows(3))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        AnnotationFile(path)


def test_a_missing_file_is_refused(tmp_path):
    for name in FORMS:
        with pytest.raises(ConfigError, match=rf"annotation .*{name} cannot be read"):
            AnnotationFile(tmp_path / name)


def test_a_file_that_is_out_of_reach_for_a_while_is_read_when_it_is_back(tmp_path):
    path = write_annotation(tmp_path / "a.jsonl", make_rows(3))
    file = LineFile(path)
    path.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        file[0]
    (tmp_path / "away").rename(path)
    assert json.loads(file[0]) == make_rows(3)[0]


def test_lines_that_do_not_exist_are_index_errors(tmp_path):
    file = LineFile(write_annotation(tmp_path / "a.jsonl", make_rows(3)))
    for number in (-1, 3):
        with pytest.raises(IndexError, match=f"line {number} of .* is wanted, it has 3"):
            file[number]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n \n\t\n")
    assert len(AnnotationFile(tmp_path / "a.jsonl")) == len(AnnotationFile(tmp_path / "a.jsonl")) == 0


def test_the_offsets_of_an_opened_file_are_not_in_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" * 200_000)
    LineFile(path)
    tracemalloc.start()
    file = LineFile(path)
    json.loads(file[123_456])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(file) == 200_000
    assert kept < 100_000  # the offsets are 1.6 MB


def test_a_large_array_is_taken_apart_in_bounded_memory(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"conversations": conversation("q", "a" * 5000)}] * 2000))
    tracemalloc.start()
    assert len(AnnotationFile(path)) == 2000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 10_000_000
    assert peak < 3_000_000
