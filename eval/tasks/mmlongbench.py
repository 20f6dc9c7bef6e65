"""MMLongBench: nineteen sets of five kinds, each at 8k, 16k, 32k, 64k and 128k tokens (arXiv 2505.10610).

    DATA_ROOT/MMLongBench/mmlb_data/vrag/{infoseek_K8_dep3,viquae_K8_dep6}.jsonl                  also K16 ... K128
    ... NIAH/{vh_single_test_1000_K8_dep6,vh_multi_test_1000_K8_dep3,retrieval-text_test_K8_dep6,...}.jsonl
    ... ICL/{cars196,food101,inat2021,sun397}_K8.json       summ/{gov,lexsum}_K8.jsonl
    ... documentQA/{longdocurl,mmlongdoc,slidevqa}_K8.jsonl
    DATA_ROOT/MMLongBench/mmlb_image/                    pictures

Questions are those of the published numbers: of the files, the part that seed 42 draws (100 questions, 50 of MM-NIAH;
where there are copies of a question with other depths, all of them). Pictures have up to four tiles, as V2PE had there.
"""

import math
import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_record, parse_rows
from eval.core.records import JsonObject, iterate_records, read_json
from eval.core.sample import Sample
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import mmlongbench as metric
from eval.metrics.estimate import Estimate, average_estimates
from eval.metrics.protocol import Protocol
from eval.tasks import mmlongbench_prompts as prompts
from eval.tasks.questions import Results, estimate_cost, find_numbers
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

FOLDER = Path("MMLongBench", "mmlb_data")
IMAGES = Path("MMLongBench", "mmlb_image")
LENGTHS = {f"{length}k": length for length in (8, 16, 32, 64, 128)}  # thousands of tokens
MAX_NUM = 4
SEED = 42


@dataclass(frozen=True)
class _Key:
    """What decides whether a line is among the questions."""

    id: str | int
    image: object = None


def _draw_ids(keys: Sequence[_Key], num: int) -> set[int]:
    """Rows of `num` ids."""
    # Some file systems cannot have the quotes that some pictures' names hold; the benchmark leaves these out.
    known = {row: key.id for row, key in enumerate(keys) if '"' not in str(key.image)}
    ids = sorted(set(known.values()), key=lambda name: (isinstance(name, str), name))
    drawn = set(random.Random(SEED).sample(ids, min(num, len(ids))))
    return {row for row, name in known.items() if name in drawn}


def _draw_rows(keys: Sequence[_Key], num: int) -> set[int]:
    return set(np.random.default_rng(SEED).permutation(len(keys))[:num].tolist())


@dataclass(frozen=True)
class _Set:
    """What distinguishes one set from the others."""

    category: str
    file: str  # below `FOLDER`, `{}` for the length
    prompt: str
    rule: metric.Rule
    record: type[prompts.Record] | None  # of a line; None: a file of classes
    draw: Callable[[Sequence[_Key], int], Collection[int]] = _draw_ids
    num: int = 100  # questions
    max_new_tokens: int = 128


def _needles() -> dict[str, _Set]:
    """The six sets of MM-NIAH."""
    sets = {}
    for kind in ("retrieval", "counting", "reasoning"):
        for needle in ("text", "image"):
            name = f"{kind}-{needle}"
            depths = 6 if kind == "retrieval" or name == "reasoning-image" else 3
            has_options = needle == "image" and kind != "counting"
            sets[name] = _Set(
                "NIAH",
                f"NIAH/{name}_test_K{{}}_dep{depths}.jsonl",
                prompts.NEEDLE_OPTIONS if has_options else prompts.NEEDLE,
                "letter" if has_options else "counts" if kind == "counting" else "contains",
                prompts.PictureNeedle
                if has_options
                else prompts.CountedNeedle
                if kind == "counting"
                else prompts.Needle,
                num=50,
            )
    return sets


SETS: dict[str, _Set] = {
    **{
        name: _Set("VRAG", f"vrag/{name}_K{{}}_dep{depths}.jsonl", prompts.RAG, "contains", prompts.VisualRag)
        for name, depths in (("infoseek", 3), ("viquae", 6))
    },
    **{
        name: _Set("NIAH", f"NIAH/{stem}_K{{}}_dep{depths}.jsonl", prompts.HAYSTACK, "yes_no", prompts.Haystack)
        for name, stem, depths in (("vh-single", "vh_single_test_1000", 6), ("vh-multi", "vh_multi_test_1000", 3))
    },
    **_needles(),
    **{
        name: _Set("ICL", f"ICL/{name}_K{{}}.json", prompts.CLASSES, "label", None)
        for name in ("cars196", "food101", "inat2021", "sun397")
    },
    **{
        name: _Set("Summ", f"summ/{stem}_K{{}}.jsonl", text, "summary", prompts.Summary, _draw_rows, max_new_tokens=384)
        for name, stem, text in (("gov-report", "gov", prompts.REPORT), ("multi-lexsum", "lexsum", prompts.LAWSUIT))
    },
    **{
        name: _Set(
            "DocVQA",
            f"documentQA/{name}_K{{}}.jsonl",
            prompts.DOCUMENT,
            "document",
            prompts.DocumentQuestion,
            _draw_rows,
        )
        for name in ("longdocurl", "mmlongdoc", "slidevqa")
    },
}
# Category -> sets, or groups of sets, that count the same in its mean.
CATEGORIES: dict[str, tuple[tuple[str, ...], ...]] = {
    "VRAG": (("infoseek",), ("viquae",)),
    "NIAH": (
        *(("vh-single",), ("vh-multi",)),
        *((f"{kind}-text", f"{kind}-image") for kind in ("retrieval", "counting", "reasoning")),
    ),
    "ICL": (("cars196",), ("food101",), ("inat2021",), ("sun397",)),
    "Summ": (("gov-report",), ("multi-lexsum",)),
    "DocVQA": (("longdocurl",), ("mmlongdoc",), ("slidevqa",)),
}


def read_samples(data_root: Root, *, chosen: _Set, length: str) -> list[Sample]:
    """The questions of a set and length. Raises DataError for a bad record."""
    path, images = data_root / find_annotation(chosen, length), data_root / IMAGES
    if chosen.record is None:
        return _read_classes(path, images, chosen=chosen, length=length)
    keys = parse_rows(path, iterate_records(path), _Key, lambda row, key: key)
    if not keys:
        raise DataError("the file holds no records", source=str(path))
    rows = sorted(chosen.draw(keys, chosen.num))
    places = {row: place for place, row in enumerate(rows)}

    def build(row: int, record: prompts.Record) -> Sample:
        question = record.ask()
        answer = question.answer
        if chosen.rule == "yes_no":
            answer = {"text": answer, "default": metric.DEFAULTS[places[row] % len(metric.DEFAULTS)]}
        metadata: dict[str, object] = {"context_length": record.length or 1024 * LENGTHS[length]}
        if isinstance(record.depth, (int, float)) and 0 <= record.depth <= 1:
            metadata["placed_depth"] = record.depth
        return _build(question, chosen, images, id=f"{record.id}-{row}", answer=answer, metadata=metadata)

    return parse_rows(path, iterate_records(path), chosen.record, build, rows=places)


def _read_classes(path: Path, images: Path, *, chosen: _Set, length: str) -> list[Sample]:
    metadata: dict[str, object] = {"context_length": 1024 * LENGTHS[length]}
    try:
        domains = {
            name: parse_record(prompts.Domain, content, place=(name,))
            for name, content in read_json(path, dict).items()
        }
        questions = prompts.draw_classes(domains, seed=SEED, num=chosen.num)
        samples = [
            _build(question, chosen, images, id=str(place), answer=question.answer, metadata=metadata)
            for place, question in enumerate(questions)
        ]
    except DataError as error:
        raise error if error.source else DataError(str(error), source=str(path)) from error
    if not samples:
        raise DataError("the file holds no test_example", source=str(path))
    return samples


def _build(
    question: prompts.Question, chosen: _Set, images: Path, *, id: str, answer: object, metadata: dict[str, object]
) -> Sample:
    prompt = chosen.prompt.format(context=question.context, question=question.question)
    num_placed = prompt.count(IMAGE_PLACEHOLDER)
    if num_placed != len(question.images):
        raise DataError(f"{num_placed} {IMAGE_PLACEHOLDER} in context and question for {len(question.images)} images")
    asked = question.question.replace(IMAGE_PLACEHOLDER, "").strip() or prompt.rpartition("\n")[2]
    return Sample(
        id=id,
        prompt=prompt,
        images=tuple(find_media(name, images, (images,)) for name in question.images),
        answer=answer,
        metadata={**metadata, "question": asked},
        cost=estimate_cost(prompt, len(question.images) * (MAX_NUM + 1)),
    )


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None, *, rule: metric.Rule) -> JsonObject:
    """For yes and no the number of the published tables, which show what is below one half mirrored."""
    if rule != "yes_no":
        return {}
    share = math.fsum(item.score for item in scored) / len(scored)
    return {"mirrored_score": max(share, 1 - share)}


def find_annotation(chosen: _Set, length: str) -> Path:
    """The questions of a set and length, below the data root."""
    return FOLDER / chosen.file.format(LENGTHS[length])


def make_task(name: str, prompts: str) -> Task | None:
    """The task of a set and length, for example `infoseek-8k`."""
    match = re.fullmatch(r"(.+)-(\d+k)", name)
    if match is None or match[1] not in SETS or match[2] not in LENGTHS:
        return None
    chosen, length = SETS[match[1]], match[2]
    return Task(
        name=f"mmlongbench/{name}",
        version=1,
        source="https://huggingface.co/datasets/ZhaoweiWang/MMLongBench",
        annotation=find_annotation(chosen, length),
        read_samples=partial(read_samples, chosen=chosen, length=length),
        max_new_tokens=chosen.max_new_tokens,
        max_num=MAX_NUM,
        score_answer=partial(_score, rule=chosen.rule),
        aggregate=partial(aggregate, rule=chosen.rule),
    )


def _score(answer: object, response: str, protocol: Protocol, *, rule: metric.Rule) -> float:
    return metric.score(answer, response, rule=rule)


def summarise(results: Results) -> dict[str, object]:
    """Means of the categories and over them, by length, as far as all of their sets are there."""
    summary: dict[str, object] = {}
    for length in LENGTHS:
        means = {category: _average(results, groups, length) for category, groups in CATEGORIES.items()}
        known = {category: mean for category, mean in means.items() if mean is not None}
        if len(known) == len(CATEGORIES):
            known["average"] = average_estimates(list(known.values()))
        if known:
            summary[length] = {category: {"official": vars(mean)} for category, mean in known.items()}
    return summary


def _average(results: Results, groups: Sequence[Sequence[str]], length: str) -> Estimate | None:
    parts = []
    for group in groups:
        numbers = find_numbers(results, [f"{name}-{length}" for name in group]).get("official")
        if numbers is None:
            return None
        means = [
            Estimate(entry.get("mirrored_score", entry["score"]), entry["stderr"], entry["count"]) for entry in numbers
        ]
        parts.append(average_estimates(means))
    return average_estimates(parts)


FAMILY = TaskFamily(
    names=tuple(f"{name}-{length}" for length in LENGTHS for name in SETS), make=make_task, summarise=summarise
)
