"""SEED-Bench, questions about single pictures (Li et al. 2023, arXiv 2307.16125).

    DATA_ROOT/SEED/seed.jsonl                        question_id, image, text (with options and instruction), answer
    DATA_ROOT/SEED/SEED-Bench.json                   question_type, questions: question_id, answer, question_type_id

The second file need not be there. It tells the kind of every question, by which published scores are listed, and its
answers come before those of the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from eval.core.fields import read_object
from eval.core.task import Scored
from eval.metrics import seed
from eval.metrics.estimate import estimate_groups
from eval.metrics.protocol import Protocol
from eval.tasks.questions import Question, QuestionFile, collect_tasks, make_image_task
from internvl.errors import DataError


class _Answer(TypedDict):
    letter: str
    type: int | str  # number of the question type; the category, where the file of types is not there


@dataclass(frozen=True)
class _Record:
    question_id: str | int
    image: str
    text: str
    answer: str | None = None
    category: object = None


@dataclass(frozen=True)
class _Entry:
    question_id: str | int
    answer: str
    question_type_id: str | int


@dataclass(frozen=True)
class _AnswerFile:
    questions: list[_Entry]


def read_answers(path: Path) -> Mapping[str, _Answer]:
    """Answers by question id."""
    try:
        return {
            str(entry.question_id): {"letter": entry.answer, "type": int(entry.question_type_id)}
            for entry in read_object(path, _AnswerFile).questions
        }
    except ValueError as error:
        raise DataError(f"a question_type_id is not a number ({error})", source=str(path)) from error


def _ask(record: _Record) -> Question:
    """The text as it is; all questions have four options."""
    answer: _Answer | None = None
    if record.answer is not None:
        answer = {"letter": record.answer, "type": str(record.category)}
    return Question(record.image, record.text, answer, id=record.question_id, metadata={"chance": 0.25})


def _score(answer: _Answer, response: str, protocol: Protocol) -> float:
    """The letter."""
    return seed.score(answer["letter"], response, protocol)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Accuracy by question type; `image` is the published number. By category where types are not known."""
    rows = [(item.answer["type"], item.score) for item in scored]
    if any(isinstance(kind, str) for kind, _ in rows):
        return {"by_category": estimate_groups(rows)}
    return seed.summarise(rows)


FAMILY = collect_tasks(
    [
        make_image_task(
            "seed/image",
            QuestionFile(
                "SEED/seed.jsonl",
                _Record,
                _ask,
                max_num=6,
                answer_file="SEED/SEED-Bench.json",
                read_answers=read_answers,
                needs_answer_file=False,
                image_folder="SEED",
            ),
            version=1,
            source="https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
            max_new_tokens=100,
            score_answer=_score,
            aggregate=aggregate,
        )
    ]
)
