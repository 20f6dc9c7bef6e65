"""Damaged annotation files: every row is a record or a DataError, unless the whole file is a ConfigError."""

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from internvl.data.meta import SourceSpec, load_meta
from internvl.data.records import Record, RecordFile
from internvl.errors import ConfigError, DataError
from tests.data.conftest import conversation
from tests.fuzz.mutations import list_damaged

ROWS = [
    {
        "id": row,
        "image": [f"{row}.png"] * (row % 3),
        "conversations": conversation("<image>" * (row % 3) + "图?", "é 😀"),
    }
    for row in range(12)
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def write_parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer, row_group_size=4)
    return buffer.getvalue()


FILES = {
    "a.jsonl": LINES.encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "a.parquet": write_parquet(),
}
COUNTS = [300, pytest.param(3000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", FILES)
def test_damaged_annotations_are_records_or_errors(tmp_path, monkeypatch, name, count):
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    num_records, file_errors, row_errors = 0, [], []
    for number, content in enumerate(list_damaged(FILES[name], seed=1, count=count)):
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(content)
        try:
            file = RecordFile(SourceSpec("fuzz", annotation=path))
        except ConfigError as error:
            file_errors.append(str(error))
            continue
        for row in range(len(file)):
            try:
                num_records += isinstance(file[row], Record)
            except DataError as error:
                row_errors.append((error.source, error.row == row))
        path.unlink()
    assert num_records > 0
    assert all(name in error for error in file_errors)
    assert set(row_errors) <= {("fuzz", True)}


@pytest.mark.parametrize("count", [1000, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_meta_files_are_read_or_refused(tmp_path, count):
    (tmp_path / "a.jsonl").touch()
    meta = {"d": {"annotation": "a.jsonl", "root": ".", "repeat_time": 2, "data_augment": True, "length": 3}}
    path = tmp_path / "meta.json"
    num_read, errors = 0, []
    for content in list_damaged(json.dumps(meta).encode() + b" " * 200, seed=1, count=count):
        path.write_bytes(content)
        try:
            num_read += len(load_meta(path))
        except ConfigError as error:
            errors.append(str(error))
    assert num_read > 0
    assert all("meta.json" in error for error in errors)
