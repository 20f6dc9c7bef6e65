"""LongDocURL: understanding, reasoning and locating in thirty pages of a longer document (arXiv 2412.18424).

    DATA_ROOT/LongDocURL/LongDocURL_public.jsonl         question_id, question, answer, answer_format, images, ...
    DATA_ROOT/LongDocURL/pdf_pngs/4000-4999/4055/4055915_41.png ...          pages

`images` holds paths of the authors' machine, whose last two parts are read. The prompt is the published one; `test`
adds a request for a word or phrase, `test-judged` adds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import JsonObject, read_records
from eval.core.sample import Sample
from eval.core.task import Scored
from eval.metrics.documents import score_longdocurl
from eval.tasks.pages import ask_about_pages, make_tasks, read_answer, score_groups
from eval.tasks.questions import SHORT_SENTENCE, collect_tasks
from internvl.model.constants import IMAGE_PLACEHOLDER

FOLDER = Path("LongDocURL")
PAGES = FOLDER / "pdf_pngs" / "4000-4999"
ANNOTATION = FOLDER / "LongDocURL_public.jsonl"
_HEAD = (
    "You are an expert in visual document question-answering, please answer our questions based on the given images.\n"
    "Following is our question: \n<question>{question}</question>\n"
)


@dataclass(frozen=True)
class _Record:
    question_id: str | int
    question: str
    answer: str | int | float | list[object]
    answer_format: str
    images: list[str]
    start_end_idx: list[int]  # numbers of the first and last page that are shown
    evidence_pages: list[int]
    evidence_sources: list[str]
    task_tag: str


def read_samples(data_root: Root, briefly: bool) -> list[Sample]:
    """All questions. Raises DataError for a bad record."""
    path, pages = data_root / ANNOTATION, data_root / PAGES

    def build(row: int, record: _Record) -> Sample:
        names = [str(PurePosixPath(*PurePosixPath(name).parts[-2:])) for name in record.images]
        images = [find_media(name, data_root, (pages,)) for name in names]
        head = _HEAD.format(question=record.question) + (f"{SHORT_SENTENCE}\n" if briefly else "")
        prompt = head + "".join(
            f"Below is the {number}-th image (total {len(images)} images).\n{IMAGE_PLACEHOLDER}"
            for number in range(1, len(images) + 1)
        )
        return ask_about_pages(
            str(record.question_id),
            prompt,
            images,
            answer=read_answer(record.answer, record.answer_format),
            metadata={
                "question": record.question,
                "task": record.task_tag,
                "sources": record.evidence_sources,
                "num_evidence_pages": len(record.evidence_pages),
            },
            evidence=record.evidence_pages,
            first=(record.start_end_idx or [1])[0],
        )

    return parse_rows(path, read_records(path), _Record, build)


def aggregate(scored: Sequence[Scored], is_short: bool) -> JsonObject:
    """Means by task, kind of evidence and number of pages with evidence, as published."""
    return score_groups(
        scored,
        {
            "by_task": lambda metadata: [metadata["task"]],
            "by_source": lambda metadata: metadata["sources"],
            "by_evidence": lambda metadata: _name_evidence(metadata["num_evidence_pages"]),
        },
    )


def _name_evidence(num_pages: int) -> list[str]:
    return ["multi_page"] if num_pages > 1 else ["single_page"] * num_pages


FAMILY = collect_tasks(
    make_tasks(
        "longdocurl",
        source="https://huggingface.co/datasets/dengchao/LongDocURL",
        annotation=ANNOTATION,
        read_samples=read_samples,
        rule=score_longdocurl,
        aggregate=aggregate,
        folders=(PAGES,),
    )
)
