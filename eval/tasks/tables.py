"""Tables: annotation files of any form as rows, and predictions for the servers of MMBench and CCBench."""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.convert import parquet
from eval.core.records import check_columns, read_json, read_records, read_text
from internvl.errors import DataError, MissingDependencyError

_MAX_DIGITS = 15  # that a number of a workbook keeps
_MAX_REFERENCE_LENGTH = 64  # a shorter `image` is the index of the row that holds the picture


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl, json, tsv, csv or parquet file, by column name.

    Raises:
        DataError: Another kind of file, or one that is not what its name says.
        MissingDependencyError: pyarrow is not installed.
    """
    readers: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        ".jsonl": lambda: read_records(path),
        ".json": lambda: read_json(path, list),
        ".tsv": lambda: read_table(path),
        ".csv": lambda: read_table(path, delimiter=","),
        ".parquet": lambda: parquet.read_rows([path], columns=()),
    }
    if path.suffix not in readers:
        raise DataError(f"{path.suffix or 'no ending'}, expected one of {', '.join(readers)}", source=str(path))
    rows = list(readers[path.suffix]())
    for row, record in enumerate(rows):
        if not isinstance(record, dict):
            raise DataError(f"it is a {type(record).__name__}, expected an object", source=str(path), row=row)
    if not rows:
        raise DataError("the file holds no rows", source=str(path))
    # What pandas writes for an empty cell of a column of numbers is not a number, and no value at all.
    return [{name: None if value != value else value for name, value in record.items()} for record in rows]


def read_table(path: Path, *, delimiter: str = "\t") -> list[dict[str, str]]:
    """Rows by column name, without cells that are empty or `nan` or have no name. Blank lines are skipped.

    Raises:
        DataError: Not UTF-8 or something else, no rows, a quote that does not end, two columns of one name, or a row
            with another number of cells than the header.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        with _allow_long_cells():
            header, *rows = [cells for cells in reader if len(cells) > 1 or "".join(cells).strip()]
        check_columns(header)
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num}: {error}, expected quotes around whole cells", source=str(path)
        ) from error
    except DataError as error:
        raise DataError(error.message, source=str(path)) from error
    if not rows:
        raise DataError("the file holds no rows", source=str(path))
    for row, cells in enumerate(rows):
        if len(cells) != len(header):
            raise DataError(f"{len(cells)} cells, expected {len(header)} as in the header", source=str(path), row=row)
    return [
        {name: cell for name, cell in zip(header, cells, strict=True) if name and cell.strip() and cell != "nan"}
        for cells in rows
    ]


@contextmanager
def _allow_long_cells() -> Iterator[None]:
    # The csv module refuses cells above 128 KiB, and pictures are longer. Its limit is global, so it is put back.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def find_content(image: str, by_index: Mapping[str, Mapping[str, str]]) -> str:
    """The base64 text of a row's `image`, which may name the row that holds it. Raises DataError without a picture."""
    if len(image) <= _MAX_REFERENCE_LENGTH and image in by_index:
        image = by_index[image].get("image", "")
    if not image:
        raise DataError("the row has no image")
    return image


def render_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as tab-separated values for a server, which compares texts: none is changed, not even a formula."""
    table = io.StringIO()
    csv.writer(table, delimiter="\t", lineterminator="\n").writerows(rows)
    return table.getvalue()


def render_workbook(rows: Sequence[Sequence[str]]) -> bytes:
    """Rows as an Excel file with one sheet; cells of digits are numbers. Raises MissingDependencyError."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE, TYPE_STRING
    except ImportError as error:
        raise MissingDependencyError("Excel files need openpyxl: pip install 'openpyxl>=3.1,<4'") from error
    book, content = Workbook(), io.BytesIO()
    for row, texts in enumerate(rows, start=1):
        for column, text in enumerate(texts, start=1):
            cell = book.active.cell(row, column)
            if text.isdecimal() and len(text) <= _MAX_DIGITS:
                cell.value = int(text)
            elif text:
                cell.value = ILLEGAL_CHARACTERS_RE.sub("", text)
                cell.data_type = TYPE_STRING  # a text that begins with = is no formula
    book.save(content)
    return content.getvalue()
