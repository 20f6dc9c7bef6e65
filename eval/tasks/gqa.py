"""GQA test-dev (balanced): compositional questions about photographs (Hudson and Manning 2019, arXiv 1902.09506).

DATA_ROOT/gqa/test_balanced.jsonl                                     image, question, question_id, answer
DATA_ROOT/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl            the same questions in LLaVA's form
DATA_ROOT/gqa/testdev_balanced_questions.json                         by question id: answer, types
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from eval.core.fields import parse_record
from eval.core.records import read_json
from eval.core.task import Scored, Task
from eval.metrics import exact
from eval.metrics.estimate import estimate_groups
from eval.tasks.questions import QuestionFile, QuestionRecord, ask_briefly, collect_tasks, make_image_task, use_one_rule
from internvl.errors import DataError

ANSWERS = "gqa/testdev_balanced_questions.json"


class _Answer(TypedDict):
    text: str
    kind: str


@dataclass(frozen=True)
class _Types:
    structural: str


@dataclass(frozen=True)
class _Entry:
    answer: str
    types: _Types


def read_answers(path: Path) -> Mapping[str, _Answer]:
    """Answers by question id."""
    answers: dict[str, _Answer] = {}
    for key, value in read_json(path, dict).items():
        try:
            entry = parse_record(_Entry, value)
        except DataError as error:
            raise DataError(f"question {key}: {error}", source=str(path)) from error
        answers[str(key)] = {"text": entry.answer, "kind": "open" if entry.types.structural == "query" else "binary"}
    return answers


def _score(answer: _Answer, response: str) -> float:
    """GQA's rule."""
    return exact.score_gqa(answer["text"], response)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Accuracy on yes-or-no and choice questions (`binary`) and on all others (`open`)."""
    return {"by_kind": estimate_groups((item.answer["kind"], item.score) for item in scored)}


def _make(name: str, file: str) -> Task:
    return make_image_task(
        name,
        QuestionFile(f"gqa/{file}", QuestionRecord, ask_briefly, 6, answer_file=ANSWERS, read_answers=read_answers),
        version=1,
        source="https://cs.stanford.edu/people/dorarad/gqa/download.html",
        max_new_tokens=10,
        score_answer=use_one_rule(_score),
        aggregate=aggregate,
    )


FAMILY = collect_tasks(
    [
        _make("vqa/gqa-testdev", "llava_gqa_testdev_balanced_qwen_format.jsonl"),
        _make("vqa/gqa-testdev-balanced", "test_balanced.jsonl"),
    ]
)
