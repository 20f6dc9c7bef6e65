"""SEED-Bench, questions about single pictures (Li et al. 2023, arXiv 2307.16125).

DATA_ROOT/SEED/seed.jsonl                            question_id, image, text (with options and instruction)
DATA_ROOT/SEED/SEED-Bench.json                       question_type, questions: question_id, answer, question_type_id
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from eval.core.records import read_json, require_field
from eval.core.task import Scored
from eval.metrics import seed
from eval.metrics.protocol import Protocol
from eval.tasks.questions import QuestionFile, collect_tasks, listed_answer, make_image_task
from internvl.errors import DataError

VERSION = 1
SOURCE = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
QUESTIONS = Path("SEED", "SEED-Bench.json")


def read_golds(data_root: Path) -> Mapping[str, dict[str, Any]]:
    """Letter and number of the question type by question id."""
    path = data_root / QUESTIONS
    content = read_json(path, dict)
    try:
        return {
            str(require_field(entry, "question_id", (str, int))): {
                "letter": require_field(entry, "answer", str),
                "type": int(require_field(entry, "question_type_id", (str, int))),
            }
            for entry in require_field(content, "questions", list)
        }
    except (DataError, ValueError) as error:
        raise DataError(str(error), source=str(path)) from error


def _score(answer: Any, response: str, protocol: str) -> float:
    return seed.score(answer["letter"], response, protocol=cast(Protocol, protocol))


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, Any]:
    """Accuracy by question type; `image` is the published number."""
    return seed.summarise([(item.answer["type"], item.score) for item in scored])


FAMILY = collect_tasks(
    make_image_task(
        "seed/image",
        version=VERSION,
        source=SOURCE,
        layout=QuestionFile(
            annotation=Path("SEED", "seed.jsonl"),
            max_num=6,
            make_prompt=lambda record: require_field(record, "text", str),
            read_answer=listed_answer,
            read_golds=read_golds,
            read_metadata=lambda record: {"chance": 0.25},
            image_folder=Path("SEED"),
        ),
        max_new_tokens=100,
        score_answer=_score,
        aggregate=aggregate,
        more_files=(QUESTIONS,),
    )
)
