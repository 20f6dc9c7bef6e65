"""Annotation files in jsonl form: one record a line, every defect named with its file and row."""

import json
from pathlib import Path
from typing import Any

from internvl.errors import DataError, EvalError


def find_annotation(path: Path, *, data_root: Path, source: str) -> Path:
    """The path itself.

    Raises:
        EvalError: No such file; the message says where it is expected and where it comes from.
    """
    if not path.is_file():
        raise EvalError(
            f"annotation file not found, expected at {path.absolute()} (--data-root {data_root}); "
            f"get it from {source}, or choose other --tasks"
        )
    return path


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a jsonl file (UTF-8, blank lines are skipped).

    Raises:
        DataError: The file holds no records, or a line is no JSON object.
    """
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"line {number} is no JSON in UTF-8 ({error})", source=str(path)) from error
        if not isinstance(record, dict):
            raise DataError(f"line {number} is a JSON {type(record).__name__}, expected an object", source=str(path))
        records.append(record)
    if not records:
        raise DataError("the file holds no records", source=str(path))
    return records


def require_field(record: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a record.

    Raises:
        DataError: It is missing or of another type, or the record is no object.
    """
    if not isinstance(record, dict):
        raise DataError(f"the record is a JSON {type(record).__name__}, expected an object")
    if name not in record:
        raise DataError(f"the field {name!r} is missing; fields: {', '.join(sorted(record))}")
    value = record[name]
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        raise DataError(f"the field {name!r} is a {type(value).__name__}, expected {expected}")
    return value
