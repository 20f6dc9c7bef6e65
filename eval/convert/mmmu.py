"""MMMU as published (parquet files of thirty subjects) -> jsonl files and pictures.

    hf download MMMU/MMMU --repo-type dataset --local-dir MMMU-parquet
    python -m eval.convert.mmmu MMMU-parquet --out dataset/benchmark/MMMU

    MMMU-parquet/SUBJECT/{dev,validation,test}-00000-of-00001.parquet   ->   {dev,validation,test}.jsonl, images/SPLIT/

Pictures keep their bytes. A split is written once all of it was read. Missing splits are left out. `fetch_split` does
the same with what the hub's cache holds, without a command.
"""

import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from eval.convert.command import run_converter
from eval.convert.files import place_inside, write_line
from eval.convert.hub import fetch_dataset
from eval.convert.parquet import find_files, read_rows
from eval.core.data_root import fetched_folder
from eval.core.output import open_result
from eval.metrics.mmmu import DOMAINS
from internvl.errors import DataError, EvalError

logger = logging.getLogger(__name__)

REPOSITORY = "MMMU/MMMU"
MAX_IMAGES = 7  # per question
SPLITS = ("dev", "validation", "test")
COLUMNS = ("id", "question", "options", "answer", "question_type", "image_1")
_KEPT = (*COLUMNS[:-1], "explanation", "subfield", "topic_difficulty", "img_type")


def convert(folder: Path, out: Path) -> dict[str, int]:
    """Convert all splits that a folder holds.

    Returns:
        Number of questions by file.

    Raises:
        DataError: There are no parquet files, a column is missing, an id occurs twice, or a picture cannot be read.
        EvalError: A file cannot be written.
        MissingDependencyError: pyarrow is not installed.
    """
    find_files(folder, "*.parquet")
    counts = {}
    for split in SPLITS:
        paths = sorted(folder.rglob(f"{split}-*.parquet"))
        if paths:
            counts[f"{split}.jsonl"] = _convert_split(split, paths, out)
            missing = _list_missing(paths)
            if missing:
                logger.warning("%s: %d subjects are not there: %s", split, len(missing), ", ".join(missing))
    if not counts:
        raise DataError(f"no file {{{','.join(SPLITS)}}}-*.parquet below {folder.absolute()}")
    return counts


def fetch_split(split: str) -> None:
    """Convert a split from the hub's cache into the folder of fetched benchmarks; it is downloaded if need be.

    Raises:
        DataError: A file is not what it should be.
        EvalError: The hub is out of reach, a subject is missing, or a file cannot be written.
        MissingDependencyError: pyarrow is not installed.
    """
    pattern, out = f"{split}-*.parquet", fetched_folder() / "MMMU"
    logger.info("%s, split %s: from the hub or its cache to %s", REPOSITORY, split, out)
    snapshot = fetch_dataset(REPOSITORY, [f"*/{pattern}"])
    paths = sorted(snapshot.rglob(pattern))
    missing = _list_missing(paths)
    if missing:
        raise EvalError(
            f"{snapshot} lacks {len(missing)} subjects of the split {split} ({', '.join(missing)}); complete it with "
            f"hf download {REPOSITORY} --repo-type dataset"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / f"{split}.lock"):  # of several processes, one converts
            if not (out / f"{split}.jsonl").is_file():
                _convert_split(split, paths, out)
    except OSError as error:
        raise EvalError(f"cannot write {out}: {error}; free space or set INTERNVL_CACHE to another folder") from error


def _list_missing(paths: Sequence[Path]) -> list[str]:
    """Subjects without a file."""
    subjects = {path.parent.name for path in paths}
    return [subject for group in DOMAINS.values() for subject in group if subject not in subjects]


def _convert_split(split: str, paths: Sequence[Path], out: Path) -> int:
    seen: set[object] = set()
    with open_result(out / f"{split}.jsonl") as file:
        for row in read_rows(paths, columns=COLUMNS):
            if row["id"] in seen:
                raise DataError(f"id {row['id']!r} occurs twice in split {split}")
            seen.add(row["id"])
            record = {name: row[name] for name in _KEPT if name in row}
            for number in range(1, MAX_IMAGES + 1):
                picture = row.get(f"image_{number}")
                if picture is not None:
                    record[f"image_{number}"] = _write_picture(picture, f"{split}/{row['id']}_{number}", out)
            write_line(file, record)
    return len(seen)


def _write_picture(picture: object, name: str, out: Path) -> str:
    """Write a picture; returns its path below `out`."""
    content = (picture.get("bytes") if isinstance(picture, dict) else None) or b""
    try:
        with Image.open(io.BytesIO(content)) as image:
            ending = str(image.format).lower()
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: the {len(content)} bytes are not a picture") from error
    path = place_inside(f"images/{name}.{ending}", out)
    with open_result(path) as file:
        file.write(content)
    return path.relative_to(out).as_posix()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_converter(convert, name="mmmu", description=__doc__, out="dataset/benchmark/MMMU", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
