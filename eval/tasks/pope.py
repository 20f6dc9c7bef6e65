"""POPE: does the picture hold the object? Three ways to choose objects (Li et al. 2023, arXiv 2305.10355).

    DATA_ROOT/pope/llava_pope_test.jsonl                 question_id, image, text, category
    DATA_ROOT/pope/coco/coco_pope_CATEGORY.json          one object per line: question_id, image, text, label
    DATA_ROOT/pope/val2014/                              pictures

Prompts: upstream sends a space behind every question, `official` does not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.core.records import read_records, require_field
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import pope
from eval.metrics.estimate import average_estimates, estimate_mean, estimate_share
from eval.tasks.questions import QuestionFile, Record, make_image_task
from internvl.errors import DataError

VERSION = 1
SOURCE = "https://github.com/AoiDragon/POPE/tree/main/output/coco (questions: LLaVA's eval.zip; pictures: COCO val2014)"
CATEGORIES = ("random", "popular", "adversarial")
LABELS = {category: Path("pope", "coco", f"coco_pope_{category}.json") for category in CATEGORIES}


def read_labels(data_root: Path) -> Mapping[str, str]:
    """Label by category, picture and question; and by category and question id."""
    labels = {}
    for category, path in LABELS.items():
        for record in read_records(data_root / path):
            label = require_field(record, "label", str)
            image, text = (require_field(record, name, str) for name in ("image", "text"))
            labels[_key(category, image, text)] = label
            labels.setdefault(_key(category, "id", str(record.get("question_id"))), label)
    return labels


def _key(*parts: str) -> str:
    return "\n".join(part.strip() for part in parts)


def _read_answer(record: Record, labels: Mapping[str, str]) -> str:
    """The label of the same question; files of other makers number questions anew, so the text decides."""
    category, question = _read_category(record)["category"], require_field(record, "text", str).partition("\n")[0]
    keys = (_key(category, record["image"], question), _key(category, "id", str(record["question_id"])))
    label = next((labels[key] for key in keys if key in labels), None)
    if label is None:
        raise DataError(f"no label for {question!r} about {record['image']} in coco_pope_{category}.json")
    return label


def _read_category(record: Record) -> dict[str, Any]:
    category = require_field(record, "category", str)
    if category not in CATEGORIES:
        raise DataError(f"the category is {category!r}, expected one of {', '.join(CATEGORIES)}")
    return {"category": category, "chance": 0.5}


def _score(answer: Any, response: str, protocol: str) -> float:
    return pope.score(answer, response)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, Any]:
    """The published number, the mean of three F1 scores; accuracy, F1 and share of yes by category."""
    rows = [(item.metadata["category"], item.answer, item.score) for item in scored]
    numbers = pope.summarise(rows)
    f1 = {category: pope.estimate_f1(metrics) for category, metrics in numbers["by_category"].items()}
    mean, accuracy = average_estimates(list(f1.values())), estimate_mean([row[2] for row in rows])
    return {
        "by_category": {
            category: {**metrics, "f1_stderr": f1[category].stderr, "acc_stderr": _spread_accuracy(metrics)}
            for category, metrics in numbers["by_category"].items()
        },
        "mean_f1": mean.score,
        "accuracy": accuracy.score,
        "accuracy_stderr": accuracy.stderr,
        "score": mean.score,
        "stderr": mean.stderr,
    }


def _spread_accuracy(metrics: Mapping[str, float]) -> float:
    right, wrong = metrics["TP"] + metrics["TN"], metrics["FP"] + metrics["FN"]
    return estimate_share(right, int(right + wrong)).stderr


def make_task(name: str, prompts: str) -> Task | None:
    """`test` alone."""
    if name != "test":
        return None
    ending = " " if prompts == "upstream" else ""
    return make_image_task(
        "pope/test",
        version=VERSION,
        source=SOURCE,
        layout=QuestionFile(
            annotation=Path("pope", "llava_pope_test.jsonl"),
            max_num=6,
            make_prompt=lambda record: require_field(record, "text", str) + ending,
            read_answer=_read_answer,
            read_golds=read_labels,
            read_metadata=_read_category,
            image_folder=Path("pope", "val2014"),
        ),
        max_new_tokens=100,
        score_answer=_score,
        aggregate=aggregate,
        more_files=tuple(LABELS.values()),
        details={"prompts": prompts},
    )


FAMILY = TaskFamily(names=("test",), make=make_task)
