"""DUDE: questions about whole documents whose answers are texts, lists, or not there (arXiv 2305.08455).

    DATA_ROOT/DUDE/2023-03-23_DUDE_gt_test_PUBLIC.json   data: questionId, question, answers, answer_type, docId, ...
    DATA_ROOT/DUDE/images/val/DOCUMENT_PAGE.jpg          pages; the first one is 0

The answers of the test split are not public, so only `val` is scored. The competition has no prompt; the request for
short answers, in the form that the rule reads, is our own.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows, read_object
from eval.core.records import JsonObject
from eval.core.sample import Sample
from eval.core.task import Scored, Task
from eval.metrics import dude as metric
from eval.tasks.pages import MAX_NUM, ask_about_pages, score_groups
from eval.tasks.questions import collect_tasks, put_images_first, use_one_rule
from internvl.data.natural_order import natural_key
from internvl.errors import DataError

FOLDER = Path("DUDE")
ANNOTATION = FOLDER / "2023-03-23_DUDE_gt_test_PUBLIC.json"
SPLIT = "val"
PAGES = FOLDER / "images" / SPLIT
MAX_NEW_TOKENS = 128
UNANSWERABLE = "not-answerable"
BRIEFLY = (
    "\nAnswer briefly, without explanation. Separate several answers by commas. "
    "If the answer is not in the document, answer 'Not answerable'."
)
_WITHOUT_PAGES = "5c5a5880e6a73b4be2315d506ab0b15b"  # the published pages lack it; its three questions are left out


@dataclass(frozen=True)
class _File:
    data: list[object]


@dataclass(frozen=True)
class _Place:
    docId: str
    data_split: Literal["train", "val", "test"]


@dataclass(frozen=True)
class _Record:
    questionId: str
    docId: str
    question: str
    answers: list[str]
    answer_type: str


def read_samples(data_root: Root) -> list[Sample]:
    """All questions of the validation split. Raises DataError for a bad record."""
    path = data_root / ANNOTATION
    pages = _list_pages(data_root / PAGES)

    def build(row: int, record: _Record) -> Sample:
        if not record.answers and record.answer_type != UNANSWERABLE:
            raise DataError(f"answers is empty, expected an answer, or the answer_type {UNANSWERABLE}")
        images = pages.get(record.docId) or [find_media(f"{record.docId}_0.jpg", data_root, (data_root / PAGES,))]
        return ask_about_pages(
            record.questionId,
            put_images_first(record.question + BRIEFLY, len(images)),
            images,
            answer={"texts": record.answers, "is_list": "list" in record.answer_type},
            metadata={"question": record.question, "answer_type": record.answer_type},
        )

    rows = read_object(path, _File).data
    places = parse_rows(path, rows, _Place, lambda row, place: place)
    chosen = {row for row, place in enumerate(places) if place.data_split == SPLIT and place.docId != _WITHOUT_PAGES}
    return parse_rows(path, rows, _Record, build, rows=chosen)


def _list_pages(folder: Path) -> dict[str, list[Path]]:
    """Document -> its pages in order."""
    pages = defaultdict(list)
    for path in sorted(folder.glob("*_*.jpg"), key=lambda path: natural_key(path.name)):
        pages[path.name.rpartition("_")[0]].append(path)
    return pages


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> JsonObject:
    """Means by type of answer."""
    return score_groups(scored, {"by_answer_type": lambda metadata: [metadata["answer_type"]]})


FAMILY = collect_tasks(
    [
        Task(
            name=f"dude/{SPLIT}",
            version=1,
            source="https://rrc.cvc.uab.es/?ch=23",
            annotation=ANNOTATION,
            read_samples=read_samples,
            max_new_tokens=MAX_NEW_TOKENS,
            max_num=MAX_NUM,
            score_answer=use_one_rule(metric.score),
            aggregate=aggregate,
            folders=(PAGES,),
        )
    ]
)
