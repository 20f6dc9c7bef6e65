"""What DocVQA and InfographicVQA share: ANLS, and answers in a file of their own."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eval.core.records import read_json, require_field
from eval.core.task import Task
from eval.metrics import anls
from eval.tasks.questions import (
    SHORT_SENTENCE,
    QuestionFile,
    ask_with,
    listed_answer,
    make_image_task,
    no_answer,
    upload_list,
)
from internvl.errors import DataError


def _score(answer: Any, response: str, protocol: str) -> float:
    return anls.score(answer, response)


def read_document_answers(data_root: Path, *, path: Path) -> Mapping[str, list[str]]:
    """Accepted answers by question id.

    Raises:
        DataError: A field is missing or of another type.
    """
    content = read_json(data_root / path, dict)
    try:
        entries = require_field(content, "data", list)
        return {str(require_field(e, "questionId", (str, int))): require_field(e, "answers", list) for e in entries}
    except DataError as error:
        raise DataError(str(error), source=str(data_root / path)) from error


def make_document_task(
    name: str, *, version: int, source: str, annotation: Path, answers: Path | None, max_num: int
) -> Task:
    """One split; without a file of answers there is a file to upload instead of a score."""
    layout = QuestionFile(
        annotation=annotation,
        max_num=max_num,
        make_prompt=ask_with(SHORT_SENTENCE),
        read_answer=listed_answer if answers else no_answer,
        read_golds=partial(read_document_answers, path=answers) if answers else None,
    )
    return make_image_task(
        name,
        version=version,
        source=source,
        layout=layout,
        max_new_tokens=100,
        score_answer=_score,
        more_files=(answers,) if answers else (),
        upload=None if answers else upload_list("upload.json", questionId="id", answer="response"),
    )
