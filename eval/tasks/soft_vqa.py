"""What TextVQA, VQAv2, OKVQA and VizWiz share: ten answers of people for every question, in a file of their own.

{"annotations": [{"question_id": 1, "answers": [{"answer": "red"}, ... ten of them]}]}
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from eval.core.records import read_json, require_field
from eval.core.task import Task
from eval.metrics import vqa
from eval.metrics.protocol import Protocol
from eval.tasks.questions import (
    SHORT_SENTENCE,
    QuestionFile,
    ask_with,
    listed_answer,
    make_image_task,
    no_answer,
)
from internvl.errors import DataError


def score_text(answer: Any, response: str, protocol: str) -> float:
    """TextVQA's rule under both protocols."""
    return vqa.score_m4c(answer, response)


def score_open(answer: Any, response: str, protocol: str) -> float:
    """VQAv2, OKVQA, VizWiz: the official rule, or TextVQA's, which published V2PE numbers use."""
    return vqa.score(answer, response, protocol=cast(Protocol, protocol))


def read_people(data_root: Path, *, path: Path) -> Mapping[str, list[str]]:
    """All people's answers by question id.

    Raises:
        DataError: A field is missing or of another type.
    """
    content = read_json(data_root / path, dict)
    try:
        entries = require_field(content, "annotations", list)
        return {
            str(require_field(entry, "question_id", (str, int))): [
                require_field(person, "answer", str) for person in require_field(entry, "answers", list)
            ]
            for entry in entries
        }
    except DataError as error:
        raise DataError(str(error), source=str(data_root / path)) from error


def make_soft_task(
    name: str,
    *,
    version: int,
    source: str,
    annotation: Path,
    answers: Path | None,
    score_answer: Any = score_open,
    suffix: str = SHORT_SENTENCE,
    **options: Any,
) -> Task:
    """One split; without a file of answers it has no score."""
    layout = QuestionFile(
        annotation=annotation,
        max_num=6,
        make_prompt=ask_with(suffix),
        read_answer=listed_answer if answers else no_answer,
        read_golds=partial(read_people, path=answers) if answers else None,
        read_metadata=lambda record: {"image": Path(record["image"]).name},
    )
    return make_image_task(
        name,
        version=version,
        source=source,
        layout=layout,
        max_new_tokens=10,
        score_answer=score_answer,
        more_files=(answers,) if answers else (),
        **options,
    )
