"""Video-MME as published (a parquet file with a row per question) -> the official JSON form, a record per video.

hf download lmms-lab/Video-MME --repo-type dataset --local-dir Video-MME-parquet
python -m eval.convert.videomme Video-MME-parquet --out dataset/benchmark/Video-MME
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.convert.command import run_converter
from eval.convert.parquet import find_files, read_rows
from eval.core.output import write_result
from internvl.command import command

VIDEO_COLUMNS = ("video_id", "duration", "domain", "sub_category", "videoID")
QUESTION_COLUMNS = ("question_id", "task_type", "question", "options", "answer")


def convert(folder: Path, out: Path) -> dict[str, int]:
    """Write `videomme.json`.

    Returns:
        Number of questions by file.

    Raises:
        DataError: There is no parquet file, or a column is missing.
        EvalError: The file cannot be written.
        MissingDependencyError: pyarrow is not installed.
    """
    videos: dict[str, dict[str, object]] = {}
    questions: dict[str, list[dict[str, object]]] = {}
    for row in read_rows(find_files(folder, "test-*.parquet"), columns=(*VIDEO_COLUMNS, *QUESTION_COLUMNS)):
        number = str(row["video_id"])
        videos.setdefault(number, {name: row[name] for name in VIDEO_COLUMNS})
        questions.setdefault(number, []).append({name: row[name] for name in QUESTION_COLUMNS})
    content = [{**video, "questions": questions[number]} for number, video in videos.items()]
    write_result(out / "videomme.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return {"videomme.json": sum(map(len, questions.values()))}


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_converter(convert, name="videomme", description=__doc__, out="dataset/benchmark/Video-MME", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
