"""MM-NIAH: needles of text or picture in long documents of text and pictures (OpenGVLab/MM-NIAH, arXiv 2406.07230).

    DATA_ROOT/MM-NIAH/mm_niah_{val,test}/annotations/{retrieval,counting,reasoning}-{text,image}.jsonl
    DATA_ROOT/MM-NIAH/mm_niah_{val,test}/images/

A record has id, images_list, context, question, answer (text, option index, or list of counts) and meta with
placed_depth, context_length, choices, choices_image_path; data sets of our own builders add `meta.chance`, the chance
level. Two prompt styles: `upstream` is what published V2PE numbers were made with, `official` the benchmark's own.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, cast

from eval.core.records import optional_field, require_field
from eval.core.sample import Sample
from eval.core.scoring import score_by_length
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import mm_niah as metric
from eval.metrics.estimate import Estimate, average_estimates
from eval.tasks.questions import read_rows
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

VERSION = 1
SOURCE = "https://github.com/OpenGVLab/MM-NIAH"
OPTION_SENTENCE = "\nAnswer with the option's letter from the given choices directly."
SHORT_SENTENCE = "\nAnswer the question using a single word or phrase."
MAX_NEW_TOKENS = 16
_NAME = re.compile(r"(?P<stem>(retrieval|counting|reasoning)-(text|image)(-[a-z0-9_-]+)?)-(?P<split>val|test)")


@dataclass(frozen=True)
class PromptStyle:
    """What differs between the benchmark's own evaluation and the one of V2PE.

    Attributes:
        joint: Text between context and question.
        counting_sentence: Text behind a counting question.
        counting_tokens: Limit of a counting answer in tokens.
        max_num: Tiles per image.
    """

    joint: str
    counting_sentence: str
    counting_tokens: int
    max_num: int


STYLES = {
    "official": PromptStyle(joint="\n", counting_sentence=SHORT_SENTENCE, counting_tokens=32, max_num=1),
    "upstream": PromptStyle(joint="", counting_sentence="", counting_tokens=320, max_num=5),
}


def read_samples(
    data_root: Path, *, annotation: Path, images: Path, style: PromptStyle, is_counting: bool
) -> list[Sample]:
    """All samples of one task.

    Raises:
        DataError: A record is wrong; the message names file and row.
    """
    folder = data_root / images
    return read_rows(
        data_root / annotation,
        lambda _, record: build_sample(record, images=folder, style=style, is_counting=is_counting),
    )


def build_sample(record: dict[str, Any], *, images: Path, style: PromptStyle, is_counting: bool) -> Sample:
    """One record as a question.

    Raises:
        DataError: A field is missing, of a wrong type, or contradicts another.
    """
    meta = require_field(record, "meta", dict)
    context, question = require_field(record, "context", str), require_field(record, "question", str)
    files = require_field(record, "images_list", list)
    num_placeholders = (context + question).count(IMAGE_PLACEHOLDER)
    if num_placeholders != len(files):
        raise DataError(f"{num_placeholders} {IMAGE_PLACEHOLDER} in context and question, {len(files)} in images_list")
    answer = _read_answer(record, is_counting=is_counting)
    options, option_images = _read_options(meta)
    if options and isinstance(answer, int) and not 0 <= answer < len(options):
        raise DataError(f"the answer is {answer}, expected an index of one of {len(options)} options")
    metadata = _read_metadata(meta, num_options=len(options))
    prompt = context + style.joint + question + _close_question(answer, options, style)
    return Sample(
        id=str(require_field(record, "id", (str, int))),
        prompt=prompt,
        images=tuple(images / str(name) for name in [*files, *option_images]),
        answer=answer,
        metadata={**metadata, "question": question},
        cost=float(metadata["context_length"]),
    )


def _close_question(answer: Any, options: Sequence[str], style: PromptStyle) -> str:
    if options:
        lines = (f"\n{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
        return "".join(lines) + OPTION_SENTENCE
    return style.counting_sentence if isinstance(answer, list) else SHORT_SENTENCE


def _read_options(meta: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(text of every option, image files of the options)."""
    choices, choice_images = (optional_field(meta, name, list) or [] for name in ("choices", "choices_image_path"))
    if choices and choice_images:
        raise DataError("meta has choices and choices_image_path, expected one of them")
    options = [str(choice) for choice in choices] or [IMAGE_PLACEHOLDER] * len(choice_images)
    if len(options) > len(ascii_uppercase):
        raise DataError(f"{len(options)} options, expected at most {len(ascii_uppercase)} (one per letter)")
    if any(IMAGE_PLACEHOLDER in str(choice) for choice in choices):
        raise DataError(f"a text option holds {IMAGE_PLACEHOLDER}, which stands for an image that is not listed")
    return options, list(choice_images)


def _read_answer(record: dict[str, Any], *, is_counting: bool) -> Any:
    """The gold answer; a counting record may hold its list as JSON text."""
    answer = require_field(record, "answer", (str, int, list))
    if is_counting and not isinstance(answer, list):
        with suppress(ValueError):
            answer = json.loads(str(answer))
    if is_counting != isinstance(answer, list) or answer == []:
        expected = "a list of counts" if is_counting else "text or an option index"
        raise DataError(f"the answer is {answer!r}, expected {expected}")
    return answer


def _read_metadata(meta: dict[str, Any], *, num_options: int) -> dict[str, Any]:
    depth = require_field(meta, "placed_depth", (int, float, list))
    try:
        metric.find_depth_cell(depth)
    except ValueError as error:
        raise DataError(str(error)) from error
    chance = meta.get("chance")
    if chance is None and num_options:
        chance = 1 / num_options
    if chance is not None and not (isinstance(chance, (int, float)) and 0 <= chance <= 1):
        raise DataError(f"meta.chance is {chance!r}, expected a share in 0..1")
    length = require_field(meta, "context_length", (int, float))
    return {"context_length": length, "placed_depth": depth, "chance": chance}


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, Any]:
    """Accuracy by length with standard errors, the depth x length grid, and the published scripts' own numbers."""
    edges = tuple(length_edges or metric.LENGTH_EDGES)
    rows = [(item.metadata["context_length"], item.metadata["placed_depth"], item.score) for item in scored]
    grid = metric.build_grid(rows, edges)
    return {
        "by_length": score_by_length(scored, edges),
        "by_depth_and_length": {
            "lengths": [f"<{metric.format_length(edges[0])}", *map(metric.format_length, edges)],
            "depths": [round(cell * metric.DEPTH_STEP, 1) for cell in range(metric.NUM_DEPTHS)],
            "score_sums": grid.score_sums,
            "square_sums": grid.square_sums,
            "counts": grid.counts,
        },
        "published_form": metric.summarise_grid(grid),
    }


def score_answer(answer: Any, response: str, protocol: str) -> float:
    """Score of one response, see `eval.metrics.mm_niah.is_correct`."""
    return metric.is_correct(answer, response, protocol=cast(metric.Protocol, protocol))


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
        version=VERSION,
        source=SOURCE,
        annotation=annotation,
        read_samples=partial(
            read_samples, annotation=annotation, images=folder / "images", style=style, is_counting=is_counting
        ),
        max_new_tokens=style.counting_tokens if is_counting else MAX_NEW_TOKENS,
        max_num=style.max_num,
        score_answer=score_answer,
        protocols=metric.PROTOCOLS,
        aggregate=aggregate,
        details={"prompts": prompts},
    )


def read_spreads(numbers: Mapping[str, Any]) -> list[float]:
    """Standard error of one task's score per length bin.

    Args:
        numbers: What `aggregate` gave; without squares, as earlier versions wrote it, scores are taken as 0 or 1.
    """
    grid = numbers["by_depth_and_length"]
    squares = grid.get("square_sums", grid["score_sums"])
    return metric.spread_length_bins(grid["score_sums"][1:], squares[1:], grid["counts"][1:])


def read_published(numbers: Mapping[str, Any]) -> Estimate:
    """The published score of one task; the lengths below the first bin do not count in it."""
    spreads = read_spreads(numbers)
    num_questions = sum(map(sum, numbers["by_depth_and_length"]["counts"][1:]))
    return Estimate(numbers["published_form"]["average"], math.hypot(*spreads) / len(spreads), num_questions)


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The published table per split and protocol, once all six tasks are there.

    Returns:
        `overall` per length bin with `overall_stderr`, its `context_ranges`, and `text`, `image` (means over three
        tasks and all bins) and `average` (of both), each with `score`, `stderr` and `count` (of questions in the bins);
        the reading of the table's last columns is an inference from published rows.
    """
    summary: dict[str, Any] = {}
    for split in ("val", "test"):
        names = [name for name in FAMILY.names if name.endswith(split)]
        if not all(name in results for name in names):
            continue
        for protocol in metric.PROTOCOLS:
            numbers = {name: results[name]["results"][protocol] for name in names}
            forms = {name: entry["published_form"] for name, entry in numbers.items()}
            means = {
                needle: average_estimates([read_published(numbers[name]) for name in names if f"-{needle}-" in name])
                for needle in ("text", "image")
            }
            columns = zip(*map(read_spreads, numbers.values()), strict=True)
            summary.setdefault(split, {})[protocol] = {
                "overall": metric.average_tasks({name: form["scores"] for name, form in forms.items()}),
                "overall_stderr": [math.hypot(*column) / len(column) for column in columns],
                "context_ranges": forms[names[0]]["context_ranges"],
                **{needle: vars(mean) for needle, mean in means.items()},
                "average": vars(average_estimates(list(means.values()))),
            }
    return summary


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
