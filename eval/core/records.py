"""Records of annotation files: reads jsonl and JSON files; `eval.core.fields` reads the fields of their records.

Benchmarks come from many hands, so every defect is a DataError that names the file, the line and the field.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from internvl.data.storage.text import decode_text, read_lines
from internvl.errors import DataError

# A parsed object. What its values are shows when `eval.core.fields` reads them.
JsonObject: TypeAlias = Mapping[str, Any]
Kind = TypeVar("Kind")

_BYTES_LOOKED_AT = 64
# What a download or an editor leaves instead of an annotation file: first bytes -> what it is, what to do.
_OTHER_CONTENTS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    b"<!doctype": "an HTML page, not the file itself; download it again (the raw file, signed in if need be)",
    b"<html": "an HTML page, not the file itself; download it again (the raw file, signed in if need be)",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first (python -m eval.convert.unpack)",
    b"PAR1": "a parquet file; convert it first (python -m eval.convert, see docs/evaluation.md)",
}


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a jsonl file in UTF-8. Blank lines are skipped.

    Raises DataError if the file cannot be read, is of another kind or empty, or a line is not a JSON object.
    """
    records = list(iterate_records(path))
    if not records:
        raise DataError("the file holds no records", source=str(path))
    return records


def iterate_records(path: Path) -> Iterator[dict[str, Any]]:
    """As `read_records`, one record in memory at a time; a file without records gives none."""
    for number, line in _read_lines(path):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"line {number} is no JSON in UTF-8 ({error})", source=str(path)) from error
        if not isinstance(record, dict):
            raise DataError(f"line {number} is a JSON {type(record).__name__}, expected an object", source=str(path))
        yield record


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """The value of a whole JSON file. Raises DataError if it is not JSON in UTF-8 or of another kind."""
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise DataError(f"the file is no JSON in UTF-8 ({error})", source=str(path)) from error
    if not isinstance(content, kind):
        raise DataError(f"the file is a JSON {type(content).__name__}, expected {kind.__name__}", source=str(path))
    return content


def parse_json(text: str) -> Any:
    """A JSON value, with None for NaN and infinities. Raises ValueError if it is not JSON or nested too deeply."""
    try:
        # JSON has no NaN, but Python writes it for absent values (pandas does so for empty cells).
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_text(path: Path) -> str:
    """A whole text file in UTF-8, without a byte order mark.

    Raises DataError if it cannot be read, is empty, of another kind, or not UTF-8 (line and byte are named).
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        raise DataError(f"the file cannot be read ({error})", source=str(path)) from error
    _check_content(path, content[:_BYTES_LOOKED_AT])
    if not content.strip():
        raise DataError("the file is empty", source=str(path))
    return decode_text(content, str(path))


def check_columns(names: Sequence[str]) -> None:
    """Refuse a table in which several columns have one name. Raises DataError that names them."""
    doubled = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if doubled:
        raise DataError(
            f"several columns are called {', '.join(map(repr, doubled))}, expected a name of its own for each"
        )


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is not blank, one in memory at a time."""
    try:
        with path.open("rb") as file:
            _check_content(path, file.read(_BYTES_LOOKED_AT))
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        raise DataError(f"the file cannot be read ({error})", source=str(path)) from error
    yield from ((number, line) for number, line in read_lines(path) if line.strip())


def _check_content(path: Path, head: bytes) -> None:
    for start, what in _OTHER_CONTENTS.items():
        if head.lstrip().lower().startswith(start.lower()):
            raise DataError(f"the file is {what}", source=str(path))
