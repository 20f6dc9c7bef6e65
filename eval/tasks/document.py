"""What DocVQA and InfographicVQA share: ANLS, and answers in a file of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.core.fields import read_object
from eval.core.task import Task
from eval.metrics import anls
from eval.tasks.questions import QuestionFile, QuestionRecord, ask_briefly, make_image_task, upload_list, use_one_rule


@dataclass(frozen=True)
class _Entry:
    questionId: str | int
    answers: list[object]


@dataclass(frozen=True)
class _AnswerFile:
    data: list[_Entry]


def read_answers(path: Path) -> Mapping[str, list[object]]:
    """Accepted answers by question id. Raises DataError for a bad field."""
    return {str(entry.questionId): entry.answers for entry in read_object(path, _AnswerFile).data}


def make_document_task(name: str, file: str, *, source: str, answers: str | None, max_num: int) -> Task:
    """One split; without a file of answers there is a file to upload instead of a score."""
    return make_image_task(
        name,
        QuestionFile(file, QuestionRecord, ask_briefly, max_num, answer_file=answers, read_answers=read_answers),
        version=1,
        source=source,
        max_new_tokens=100,
        score_answer=use_one_rule(anls.score),
        uploads=() if answers else (upload_list(questionId="id", answer="response"),),
    )
