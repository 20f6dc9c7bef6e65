"""MMLongBench-Doc: questions about whole documents, a fifth of which have no answer there (arXiv 2407.01523).

    DATA_ROOT/MMLongBench-Doc/samples.json               doc_id, question, answer, answer_format, evidence_pages, ...
    DATA_ROOT/MMLongBench-Doc/pages/DOCUMENT/            pages of DOCUMENT.pdf as pictures, in natural order (144 dpi)

The first 120 pages are shown, as published. `test` asks for a word or phrase with the sentence of lmms-eval, which
however shows only the pages with the evidence; `test-judged` sends the question alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.core.data_root import Root
from eval.core.fields import parse_rows
from eval.core.records import JsonObject, read_json
from eval.core.sample import Sample
from eval.core.task import Scored
from eval.metrics.documents import NOT_ANSWERABLE, measure_f1, read_entries, score_mmlongbench_doc
from eval.metrics.estimate import bootstrap_stderr
from eval.tasks.pages import ask_about_pages, list_pages, make_tasks, read_answer, score_groups
from eval.tasks.questions import collect_tasks, put_images_first
from internvl.errors import DataError

FOLDER = Path("MMLongBench-Doc")
MAX_PAGES = 120
BRIEFLY = "\nAnswer with a single word or phrase. If the answer is not in the document, answer 'Not answerable'."


@dataclass(frozen=True)
class _Record:
    doc_id: str
    doc_type: str
    question: str
    answer: str
    answer_format: str
    evidence_pages: str
    evidence_sources: str


def read_samples(data_root: Root, briefly: bool) -> list[Sample]:
    """All questions. Raises DataError for a bad record."""
    path = data_root / FOLDER / "samples.json"

    def build(row: int, record: _Record) -> Sample:
        name = record.doc_id.removesuffix(".pdf")
        if Path(name).name != name or name in ("", ".", ".."):
            raise DataError(f"doc_id is {record.doc_id!r:.80}, expected the name of a PDF file")
        images = list_pages(data_root / FOLDER / "pages" / name, most=MAX_PAGES)
        evidence, sources = (_read_list(text) for text in (record.evidence_pages, record.evidence_sources))
        return ask_about_pages(
            str(row),
            put_images_first(record.question + (BRIEFLY if briefly else ""), len(images)),
            images,
            answer=read_answer(record.answer, record.answer_format),
            metadata={
                "question": record.question,
                "document_type": record.doc_type,
                "evidence": _name_evidence(len(evidence), is_answerable=record.answer != NOT_ANSWERABLE),
                "sources": [str(source) for source in sources],
            },
            evidence=evidence,
        )

    return parse_rows(path, read_json(path, list), _Record, build)


def _name_evidence(num_pages: int, *, is_answerable: bool) -> list[str]:
    """The published groups, which overlap: a page may show that there is no answer."""
    names = ["single_page"] if num_pages == 1 else ["cross_page"] if is_answerable else []
    return names if is_answerable else [*names, "unanswerable"]


def _read_list(text: str) -> list[object]:
    try:
        return read_entries(text)
    except (ValueError, SyntaxError) as error:
        raise DataError(f"{text!r:.80} is no list") from error


def aggregate(scored: Sequence[Scored], is_short: bool) -> JsonObject:
    """The published numbers: F1 where the responses are the short answers, and means by evidence and document."""
    numbers = score_groups(
        scored,
        {
            "by_evidence": lambda metadata: metadata["evidence"],
            "by_source": lambda metadata: metadata["sources"],
            "by_document_type": lambda metadata: [metadata["document_type"]],
        },
    )
    if is_short:
        rows = [(item.answer["text"], item.response.strip(), item.score) for item in scored]
        spread = bootstrap_stderr(rows, measure_f1, num_draws=50)
        numbers["f1"] = {"score": measure_f1(rows), "stderr": spread, "count": len(rows)}
    return numbers


FAMILY = collect_tasks(
    make_tasks(
        "mmlongbench_doc",
        source="https://github.com/mayubo2333/MMLongBench-Doc",
        annotation=FOLDER / "samples.json",
        read_samples=read_samples,
        rule=score_mmlongbench_doc,
        aggregate=aggregate,
        folders=(FOLDER / "pages",),
    )
)
