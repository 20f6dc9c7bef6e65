"""What TextVQA, VQAv2, OK-VQA and VizWiz share: ten people's answers to every question, in a file of their own.

{"annotations": [{"question_id": 1, "answers": [{"answer": "red"}, ... ten of them]}]}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.core.fields import read_object
from eval.core.task import Task, Upload
from eval.metrics import vqa
from eval.tasks.questions import SHORT_SENTENCE, Question, QuestionFile, QuestionRecord, Rule, make_image_task


@dataclass(frozen=True, slots=True)  # VQAv2 has two million of them
class _Person:
    answer: str


@dataclass(frozen=True)
class _Annotation:
    question_id: str | int
    answers: list[_Person]


@dataclass(frozen=True)
class _AnswerFile:
    annotations: list[_Annotation]


def read_answers(path: Path) -> Mapping[str, list[str]]:
    """All people's answers by question id. Raises DataError for a bad field."""
    annotations = read_object(path, _AnswerFile).annotations
    return {str(entry.question_id): [person.answer for person in entry.answers] for entry in annotations}


def make_soft_task(
    name: str,
    file: str,
    *,
    source: str,
    answers: str | None,
    score_answer: Rule[list[str]] = vqa.score,
    instruction: str = SHORT_SENTENCE,
    uploads: tuple[Upload, ...] = (),
) -> Task:
    """One split; without a file of answers it has no score."""

    def ask(record: QuestionRecord) -> Question:
        metadata = {"image": Path(record.image).name}  # VizWiz uploads are keyed by it
        return Question(record.image, f"{record.question} {instruction}", id=record.question_id, metadata=metadata)

    return make_image_task(
        name,
        QuestionFile(file, QuestionRecord, ask, max_num=6, answer_file=answers, read_answers=read_answers),
        version=1,
        source=source,
        max_new_tokens=10,
        score_answer=score_answer,
        uploads=uploads,
    )
