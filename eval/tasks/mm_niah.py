"""MM-NIAH: needles of text or picture in long documents of text and pictures (OpenGVLab/MM-NIAH, arXiv 2406.07230).

    DATA_ROOT/MM-NIAH/mm_niah_{val,test}/annotations/{retrieval,counting,reasoning}-{text,image}.jsonl
    DATA_ROOT/MM-NIAH/mm_niah_{val,test}/images/

A record has id, images_list, context, question, answer (text, option index, or list of counts) and meta with
placed_depth, context_length, choices, choices_image_path; data sets of our own builders add `meta.chance`, the chance
level. Prompts: the published V2PE numbers were made with `upstream`, `official` is the benchmark's own.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_records
from eval.core.sample import Sample
from eval.core.scoring import describe_grid, score_by_length
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import mm_niah as metric
from eval.metrics.estimate import Estimate, average_estimates
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import OPTION_SENTENCE, SHORT_SENTENCE, Results, find_numbers, letter_options
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

MAX_NEW_TOKENS = 16
_NAME = re.compile(r"(?P<stem>(retrieval|counting|reasoning)-(text|image)(-[a-z0-9_-]+)?)-(?P<split>val|test)")

Answer = int | str | list[object]  # index of the right option, open text, or counts


@dataclass(frozen=True)
class NeedlePrompt:
    """What differs between the benchmark's own evaluation and V2PE's."""

    joint: str  # text between context and question
    counting_ending: str  # text after a counting question
    counting_tokens: int  # limit of a counting answer in tokens
    max_num: int  # tiles per image


STYLES = {
    "official": NeedlePrompt(joint="\n", counting_ending=f"\n{SHORT_SENTENCE}", counting_tokens=32, max_num=1),
    "upstream": NeedlePrompt(joint="", counting_ending="", counting_tokens=320, max_num=5),
}


@dataclass(frozen=True)
class _Meta:
    placed_depth: float | list[object]
    context_length: float
    choices: list[object] = field(default_factory=list)
    choices_image_path: list[str] = field(default_factory=list)
    chance: float | None = None
    needles: object = None  # texts of the context and names of its pictures


@dataclass(frozen=True)
class _Record:
    id: str | int
    images_list: list[str]
    context: str
    question: str
    answer: str | int | list[object]
    meta: _Meta


def read_samples(
    data_root: Root, *, annotation: Path, images: Sequence[Path], style: NeedlePrompt, is_counting: bool
) -> list[Sample]:
    """All samples of a task. Raises DataError for a bad record."""
    path, folders = data_root / annotation, [data_root / folder for folder in images]

    def build(row: int, record: _Record) -> Sample:
        names = [*record.images_list, *record.meta.choices_image_path]
        media = tuple(find_media(name, data_root, folders) for name in names)
        return _build(record, images=media, style=style, is_counting=is_counting)

    return parse_rows(path, read_records(path), _Record, build)


def _build(record: _Record, *, images: tuple[Path, ...], style: NeedlePrompt, is_counting: bool) -> Sample:
    num_placeholders = (record.context + record.question).count(IMAGE_PLACEHOLDER)
    if num_placeholders != len(record.images_list):
        raise DataError(
            f"{num_placeholders} {IMAGE_PLACEHOLDER} in context and question, {len(record.images_list)} in images_list"
        )
    answer = _read_answer(record.answer, is_counting=is_counting)
    options = _list_options(record.meta)
    if options and isinstance(answer, int) and not 0 <= answer < len(options):
        raise DataError(f"the answer is {answer}, expected an index of one of {len(options)} options")
    if options:
        ending = f"\n{letter_options(options)}\n{OPTION_SENTENCE}"
    else:
        ending = style.counting_ending if isinstance(answer, list) else f"\n{SHORT_SENTENCE}"
    return Sample(
        id=str(record.id),
        prompt=record.context + style.joint + record.question + ending,
        images=images,
        answer=answer,
        metadata={**_read_metadata(record.meta, num_options=len(options)), "question": record.question},
        cost=float(record.meta.context_length),
        needles=_find_needles(record),
    )


def _find_needles(record: _Record) -> tuple[str | int, ...]:
    """The needles that the record names: texts as they stand in the context, pictures by their place."""
    named = record.meta.needles if isinstance(record.meta.needles, list) else []
    places = {name: place for place, name in enumerate(record.images_list)}
    texts = (str(needle) for needle in named)
    return tuple(places.get(text, text) for text in texts if text in places or text in record.context)


def _list_options(meta: _Meta) -> list[str]:
    """The options as the prompt lists them."""
    if meta.choices and meta.choices_image_path:
        raise DataError("meta has choices and choices_image_path, expected one of them")
    texts = [str(choice) for choice in meta.choices]
    if any(IMAGE_PLACEHOLDER in text for text in texts):
        raise DataError(f"a text option holds {IMAGE_PLACEHOLDER}, which stands for an image that is not listed")
    return texts or [IMAGE_PLACEHOLDER] * len(meta.choices_image_path)


def _read_answer(answer: Answer, *, is_counting: bool) -> Answer:
    if is_counting and not isinstance(answer, list):
        with suppress(ValueError):
            answer = json.loads(str(answer))  # published records hold some lists as JSON text
    if is_counting != isinstance(answer, list) or answer == []:
        expected = "a list of counts" if is_counting else "text or an option index"
        raise DataError(f"the answer is {answer!r}, expected {expected}")
    return answer


def _read_metadata(meta: _Meta, *, num_options: int) -> dict[str, object]:
    metric.find_depth_cell(meta.placed_depth)
    chance = 1 / num_options if meta.chance is None and num_options else meta.chance
    if chance is not None and not 0 <= chance <= 1:
        raise DataError(f"meta.chance is {chance!r}, expected a share in 0..1")
    return {"context_length": meta.context_length, "placed_depth": meta.placed_depth, "chance": chance}


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Accuracy by length with standard errors, the depth x length grid, and the published scripts' own numbers."""
    edges = tuple(length_edges or metric.LENGTH_EDGES)
    rows = [(item.metadata["context_length"], item.metadata["placed_depth"], item.score) for item in scored]
    grid = metric.build_grid(rows, edges)
    return {
        "by_length": score_by_length(scored, edges),
        "by_depth_and_length": describe_grid(grid),
        "published_form": metric.summarise_grid(grid),
    }


def make_task(name: str, prompts: str) -> Task | None:
    """The task `name` (for example `retrieval-text-test`); None when there is none of that name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    style = STYLES[prompts]
    folder = Path("MM-NIAH", f"mm_niah_{match['split']}")
    annotation = folder / "annotations" / f"{match['stem']}.jsonl"
    is_counting = name.startswith("counting")
    return Task(
        name=f"mm_niah/{name}",
        version=1,
        source="https://github.com/OpenGVLab/MM-NIAH",
        annotation=annotation,
        read_samples=partial(
            read_samples, annotation=annotation, images=(folder / "images",), style=style, is_counting=is_counting
        ),
        max_new_tokens=style.counting_tokens if is_counting else MAX_NEW_TOKENS,
        max_num=style.max_num,
        score_answer=metric.is_correct,
        protocols=PROTOCOLS,
        aggregate=aggregate,
        details={"prompts": prompts},
    )


def read_spreads(numbers: Mapping[str, Any]) -> list[float]:
    """Standard error of one task's score per length bin, from what `aggregate` gave."""
    grid = numbers["by_depth_and_length"]
    squares = grid.get("square_sums", grid["score_sums"])  # earlier versions wrote no squares; 0 and 1 are their own
    return metric.spread_length_bins(grid["score_sums"][1:], squares[1:], grid["counts"][1:])


def read_published(numbers: Mapping[str, Any]) -> Estimate:
    """The published score of one task; lengths below the first bin do not count in it."""
    spreads = read_spreads(numbers)
    num_questions = sum(map(sum, numbers["by_depth_and_length"]["counts"][1:]))
    return Estimate(numbers["published_form"]["average"], math.hypot(*spreads) / len(spreads), num_questions)


def summarise(results: Results) -> dict[str, object]:
    """The published table per split and protocol, once all six tasks are there.

    Returns:
        `overall` per length bin with `overall_stderr`, its `context_ranges`, and `text`, `image` (means over three
        tasks and all bins) and `average` (of both), each with `score`, `stderr` and `count` (of questions in the bins);
        the reading of the table's last columns is an inference from published rows.
    """
    summary: dict[str, object] = {}
    for split in ("val", "test"):
        names = [name for name in FAMILY.names if name.endswith(split)]
        tables = {protocol: _summarise(names, rows) for protocol, rows in find_numbers(results, names).items()}
        if tables:
            summary[split] = tables
    return summary


def _summarise(names: Sequence[str], numbers: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    forms = [entry["published_form"] for entry in numbers]
    means = {
        needle: average_estimates(
            [read_published(entry) for name, entry in zip(names, numbers, strict=True) if f"-{needle}-" in name]
        )
        for needle in ("text", "image")
    }
    columns = zip(*map(read_spreads, numbers), strict=True)
    return {
        "overall": metric.average_tasks([form["scores"] for form in forms]),
        "overall_stderr": [math.hypot(*column) / len(column) for column in columns],
        "context_ranges": forms[0]["context_ranges"],
        **{needle: vars(mean) for needle, mean in means.items()},
        "average": vars(average_estimates(list(means.values()))),
    }


FAMILY = TaskFamily(
    names=tuple(
        f"{kind}-{needle}-{split}"
        for split in ("val", "test")
        for needle in ("text", "image")
        for kind in ("retrieval", "counting", "reasoning")
    ),
    make=make_task,
    summarise=summarise,
)
