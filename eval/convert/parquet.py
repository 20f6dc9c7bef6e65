"""Parquet files, read a few rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from eval.core.records import check_columns
from internvl.errors import DataError, MissingDependencyError

_ROWS_AT_A_TIME = 16  # a row may hold seven pictures


def read_rows(paths: Sequence[Path], *, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """All rows of several files, in order, with a progress bar. Every file must have the given columns.

    Raises:
        DataError: A file is not a parquet file, lacks a column, or has two of one name.
        MissingDependencyError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("parquet files need pyarrow: pip install 'pyarrow>=19,<27'") from error
    for path in tqdm(paths, unit="file", disable=None):
        try:
            file = parquet.ParquetFile(path)
            names = file.schema_arrow.names
            check_columns(names)
            missing = [name for name in columns if name not in names]
            if missing:
                raise DataError(f"no column {', '.join(missing)}; there are {', '.join(names)}")
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, DataError) as error:
            raise DataError(str(error), source=str(path)) from error


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder, sorted by path. Raises DataError if there are none."""
    paths = sorted(folder.rglob(pattern))
    if not paths:
        raise DataError(f"no file {pattern} below {folder.absolute()}")
    return paths
