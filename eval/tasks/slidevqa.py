"""SlideVQA: questions about a deck of twenty slides, some of which need several slides (arXiv 2301.04883).

    DATA_ROOT/SlideVQA/annotations/qa/{dev,test}.jsonl   deck_name, image_urls, qa_id, question, answer, ...
    DATA_ROOT/SlideVQA/images/{dev,test}/DECK/           slides, named like the ends of their addresses

The benchmark is older than chat models and has no prompt for them; the request for a short answer is lmms-eval's. Its
own rule scores (F1; `exact_match` beside it), not lmms-eval's, whose numbers are others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import JsonObject, read_records
from eval.core.sample import Sample
from eval.core.task import Scored, Task
from eval.metrics import slidevqa as metric
from eval.metrics.estimate import estimate_mean
from eval.tasks.pages import MAX_NUM, ask_about_pages, score_groups
from eval.tasks.questions import collect_tasks, put_images_first, use_one_rule

FOLDER = Path("SlideVQA")
MAX_NEW_TOKENS = 128
BRIEFLY = "\nAnswer using only the short answer, without explanation."


@dataclass(frozen=True)
class _Record:
    deck_name: str
    image_urls: list[str]
    qa_id: str | int
    question: str
    answer: str | int | float
    evidence_pages: list[int]
    reasoning_type: str = ""
    answer_type: str = ""


def read_samples(data_root: Root, *, split: str) -> list[Sample]:
    """All questions of a split. Raises DataError for a bad record."""
    path, slides = data_root / find_annotation(split), data_root / FOLDER / "images" / split

    def build(row: int, record: _Record) -> Sample:
        names = [f"{record.deck_name}/{PurePosixPath(url).name}" for url in record.image_urls]
        images = [find_media(name, data_root, (slides,)) for name in names]
        return ask_about_pages(
            str(record.qa_id),
            put_images_first(record.question + BRIEFLY, len(images)),
            images,
            answer={"text": str(record.answer), "question": record.question},
            metadata={
                "question": record.question,
                "reasoning": record.reasoning_type,
                "answer_type": record.answer_type,
            },
            evidence=record.evidence_pages,
        )

    return parse_rows(path, read_records(path), _Record, build)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> JsonObject:
    """Equality beside the F1, and F1 by kind of reasoning and of answer."""
    exact = [metric.score_exact(item.answer, item.response) for item in scored]
    groups = score_groups(
        scored,
        {
            "by_reasoning": lambda metadata: [metadata["reasoning"]],
            "by_answer_type": lambda metadata: [metadata["answer_type"]],
        },
    )
    return {"exact_match": vars(estimate_mean(exact)), **groups}


def find_annotation(split: str) -> Path:
    """The questions of a split, below the data root."""
    return FOLDER / "annotations" / "qa" / f"{split}.jsonl"


def _make_task(split: str) -> Task:
    return Task(
        name=f"slidevqa/{split}",
        version=1,
        source="https://github.com/nttmdlab-nlp/SlideVQA",
        annotation=find_annotation(split),
        read_samples=partial(read_samples, split=split),
        max_new_tokens=MAX_NEW_TOKENS,
        max_num=MAX_NUM,
        score_answer=use_one_rule(metric.score),
        aggregate=aggregate,
        folders=(FOLDER / "images" / split,),
    )


FAMILY = collect_tasks(_make_task(split) for split in ("test", "dev"))
