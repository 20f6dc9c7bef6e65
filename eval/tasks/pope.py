"""POPE: does the picture hold the object? Three ways to choose objects (Li et al. 2023, arXiv 2305.10355).

    DATA_ROOT/pope/llava_pope_test.jsonl                 question_id, image, text, category
    DATA_ROOT/pope/coco/coco_pope_CATEGORY.json          one object per line: question_id, image, text, label
    DATA_ROOT/pope/val2014/                              pictures

Prompts: upstream sends a space after every question, `official` does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.core.data_root import Root
from eval.core.fields import parse_rows
from eval.core.records import read_records
from eval.core.sample import Sample
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import pope
from eval.metrics.estimate import average_estimates, estimate_mean, estimate_share
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import Question, QuestionFile, read_questions, use_one_rule
from internvl.errors import DataError

FILE = "pope/llava_pope_test.jsonl"
LABELS = {name: Path("pope", "coco", f"coco_pope_{name}.json") for name in ("random", "popular", "adversarial")}
MAX_NUM = 6


@dataclass(frozen=True)
class _Record:
    question_id: str | int
    image: str
    text: str
    category: str


@dataclass(frozen=True)
class _Label:
    image: str
    text: str
    label: str
    question_id: object = None


def read_samples(data_root: Root, *, ending: str) -> list[Sample]:
    """All questions, `ending` after each. Raises DataError for a bad record."""
    ask = partial(_ask, labels=_read_labels(data_root), ending=ending)
    questions = QuestionFile(FILE, _Record, ask, MAX_NUM, image_folder="pope/val2014")
    return read_questions(data_root, questions=questions)


def _ask(record: _Record, *, labels: Mapping[tuple[str, ...], str], ending: str) -> Question:
    category = record.category
    if category not in LABELS:
        raise DataError(f"the category is {category!r}, expected one of {', '.join(LABELS)}")
    text = record.text.partition("\n")[0].strip()
    # Some files number the questions differently, so the text decides and the id is the fallback.
    keys = ((category, record.image, text), (category, str(record.question_id)))
    label = next((labels[key] for key in keys if key in labels), None)
    if label is None:
        raise DataError(f"no label for {text!r} about {record.image} in coco_pope_{category}.json")
    metadata = {"category": category, "chance": 0.5}
    return Question(record.image, record.text + ending, label, id=record.question_id, metadata=metadata)


def _read_labels(data_root: Root) -> Mapping[tuple[str, ...], str]:
    """Label by (category, picture, question), and by (category, question id)."""
    labels: dict[tuple[str, ...], str] = {}
    for category, file in LABELS.items():
        path = data_root / file
        for entry in parse_rows(path, read_records(path), _Label, lambda row, entry: entry):
            labels[category, entry.image, entry.text.strip()] = entry.label
            labels.setdefault((category, str(entry.question_id)), entry.label)
    return labels


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """The published number, the mean of three F1 scores; accuracy, F1 and share of yes by category."""
    by_category = pope.summarise((item.metadata["category"], item.answer, item.score) for item in scored)
    f1 = {category: pope.estimate_f1(metrics) for category, metrics in by_category.items()}
    mean, accuracy = average_estimates(list(f1.values())), estimate_mean([item.score for item in scored])
    return {
        "by_category": {
            category: {**metrics, "f1_stderr": f1[category].stderr, "acc_stderr": _spread_accuracy(metrics)}
            for category, metrics in by_category.items()
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
    return Task(
        name="pope/test",
        version=1,
        source=(
            "https://github.com/AoiDragon/POPE/tree/main/output/coco "
            "(questions: LLaVA's eval.zip; pictures: COCO val2014)"
        ),
        annotation=Path(FILE),
        read_samples=partial(read_samples, ending=" " if prompts == "upstream" else ""),
        max_new_tokens=100,
        max_num=MAX_NUM,
        score_answer=use_one_rule(pope.score),
        protocols=PROTOCOLS,
        aggregate=aggregate,
        more_files=tuple(LABELS.values()),
        details={"prompts": prompts},
    )


FAMILY = TaskFamily(names=("test",), make=make_task)
