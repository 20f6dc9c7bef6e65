import json
from pathlib import Path

import pytest

from internvl.data.meta import load_meta
from internvl.errors import ConfigError


@pytest.fixture
def write_meta(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "packed.tar.gz").write_bytes(b"")

    def write(content: object) -> Path:
        path = tmp_path / "meta.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_all_keys_of_the_public_recipes_are_read(write_meta, tmp_path):
    entry = {
        "annotation": "a.jsonl",
        "root": "pictures",
        "root2": "pictures",
        "http_root": "pictures",
        "data_augment": True,
        "repeat_time": 1.233,
        "max_dynamic_patch": 5,
        "dynamic_image_size": False,
        "length": 3000,
    }
    (spec,) = load_meta(write_meta({"first": entry}))
    assert (spec.name, spec.annotation, spec.root) == ("first", tmp_path / "a.jsonl", tmp_path / "pictures")
    assert (spec.root2, spec.http_root) == (tmp_path / "pictures", tmp_path / "pictures")
    assert (spec.data_augment, spec.repeat_time, spec.max_dynamic_patch) == (True, 1.233, 5)
    assert (spec.dynamic_image_size, spec.length) == (False, 3000)


def test_data_sets_keep_the_order_of_the_file(write_meta):
    names = ["zebra", "ant", "mule"]
    assert [spec.name for spec in load_meta(write_meta({name: {"annotation": "a.jsonl"} for name in names}))] == names


def test_the_current_directory_comes_before_the_folder_of_the_meta_file(write_meta, tmp_path, monkeypatch):
    meta = write_meta({"x": {"annotation": "a.jsonl"}})
    here = tmp_path / "here"
    here.mkdir()
    (here / "a.jsonl").write_text("{}\n")
    monkeypatch.chdir(here)
    assert load_meta(meta)[0].annotation.resolve() == here / "a.jsonl"


def test_a_data_root_is_the_only_place_looked_at(write_meta, tmp_path):
    meta = write_meta({"x": {"annotation": "a.jsonl", "root": "pictures"}})
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match=r"annotation 'a\.jsonl' is not a file; tried .*other"):
        load_meta(meta, data_root=other)
    assert load_meta(meta, data_root=tmp_path)[0].root == tmp_path / "pictures"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.parquet", "A.JSONL"])
def test_annotations_have_many_forms(write_meta, tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert load_meta(write_meta({"x": {"annotation": name}}))[0].annotation == tmp_path / name


@pytest.mark.parametrize("root", ["pictures.zip", "pictures.TAR/train"])
def test_a_root_may_be_an_archive_or_lead_into_one(write_meta, tmp_path, root):
    (tmp_path / root.split("/")[0]).write_bytes(b"")
    spec = load_meta(write_meta({"x": {"annotation": "a.jsonl", "root": root, "root2": root}}))[0]
    assert (spec.root, spec.root2) == (tmp_path / root, tmp_path / root)


@pytest.mark.parametrize("root", ["s3://bucket/x", "https://host/x", "memory://x"])
def test_a_root_may_be_a_url(write_meta, root):
    assert load_meta(write_meta({"x": {"annotation": "a.jsonl", "root": root}}))[0].root == root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anotation": "a.jsonl"}, "unknown key 'anotation'; did you mean 'annotation'"),
        ({"repeat": 2}, "unknown key 'repeat'; did you mean 'repeat_time'"),
        ({"repeat_time": 10**400}, "repeat_time is 1000"),
        ({"annotation": "none.jsonl"}, "annotation 'none.jsonl' is not a file"),
        ({"annotation": "a.txt"}, r"annotation is 'a\.txt' \(str\), expected a path ending in \.jsonl, \.jsonl\.gz"),
        ({"annotation": "s3://bucket/a.jsonl"}, "annotation is 's3://bucket/a.jsonl', expected a path on this machine"),
        ({"annotation": 3}, r"annotation is 3 \(int\)"),
        ({"root": "nowhere"}, "root 'nowhere' is not a folder"),
        ({"root": "ftp://host/x"}, "root 'ftp://host/x' begins with ftp://, expected a path or one of http, https, s3"),
        ({"root": "cluster:s3://bucket/x"}, "expected a path on this machine"),
        ({"root": "a.jsonl"}, r"root 'a\.jsonl' is not a folder \(or archive\)"),
        ({"root": "packed.tar.gz/x"}, "compressed tar file"),
        ({"http_root": "https://host/x"}, "http_root is 'https://host/x', expected a path on this machine"),
        ({"data_augment": 1}, r"data_augment is 1 \(int\), expected true or false"),
        ({"data_augment": "true"}, r"data_augment is 'true' \(str\)"),
        ({"repeat_time": True}, r"repeat_time is True \(bool\), expected a number"),
        ({"repeat_time": -1}, "repeat_time is -1"),
        ({"repeat_time": "2"}, r"repeat_time is '2' \(str\)"),
        ({"repeat_time": float("nan")}, "repeat_time is nan"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0"),
        ({"max_dynamic_patch": 2.5}, "max_dynamic_patch is 2.5"),
        ({"dynamic_image_size": None}, "dynamic_image_size is None"),
        ({"length": "many"}, "length is 'many'"),
    ],
)
def test_wrong_entries_name_file_data_set_and_value(write_meta, change, message):
    meta = write_meta({"good": {"annotation": "a.jsonl"}, "bad": {"annotation": "a.jsonl"} | change})
    with pytest.raises(ConfigError, match=message) as caught:
        load_meta(meta)
    assert str(meta) in str(caught.value)
    assert "'bad'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not json"),
        ("[" * 100_000, "is not json"),
        ('{"x": {"repeat_time": ' + "1" * 5000 + "}}", "is not json"),
        ('{"x": {}}\n{"y": {}}', "is not json"),
        ("[1]", "got a json list"),
        ("{}", "got an empty object"),
        ('{"x": 3}', "got a int, expected an object"),
        ('{"x": {}}', "the key 'annotation' is missing"),
        ('{"x": {"annotation": "a.jsonl"}, "x": {"annotation": "a.jsonl"}}', "'x' is given twice"),
    ],
)
def test_files_that_are_no_meta_are_refused(write_meta, content, message):
    with pytest.raises(ConfigError, match=message):
        load_meta(write_meta(content))


def test_a_missing_or_binary_meta_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json .*check --meta_path"):
        load_meta(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_meta(tmp_path / "binary.json")
