"""MileBench: 29 sets of many pictures (Song et al. 2024, arXiv 2404.18532).

    DATA_ROOT/MileBench/SET/SET.json                     meta_data, data
    DATA_ROOT/MileBench/SET/images/                      pictures
    DATA_ROOT/MileBench/SET/SET_combined_1.json          all pictures of a sample on one canvas: task SET-combined-1

Prompts: `upstream` closes options with the sentence of the other multiple-choice sets and stops after 32 tokens,
`official` with `Your answer is: ` after 512. Contexts are never cut (upstream keeps their last 512,000 tokens). With
combined pictures the canvas comes first and `<Image 3> ` stands where its third picture was, as officially.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eval.core.records import optional_field, read_json, require_field
from eval.core.sample import Sample
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import milebench
from eval.metrics.estimate import estimate_groups, estimate_mean, read_estimate
from eval.tasks.questions import OPTION_SENTENCE, Record, build_rows, estimate_cost, letter_options
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

VERSION = 1
SOURCE = "https://huggingface.co/datasets/FreedomIntelligence/MileBench"
ENDINGS = {"upstream": f"\n{OPTION_SENTENCE}", "official": "\nYour answer is: "}
MAX_NEW_TOKENS = {"upstream": 32, "official": 512}
PROTOCOLS = ("official", "upstream")
COMBINED = "-combined-1"
_MARK = re.compile(r"\{(?:image|table)#\d+\}")


def read_samples(data_root: Path, *, annotation: Path, set_name: str, prompts: str, combined: bool) -> list[Sample]:
    """All samples of a set. Raises DataError for a bad record."""
    path = data_root / annotation
    content = read_json(path, dict)
    try:
        meta, records = require_field(content, "meta_data", dict), require_field(content, "data", list)
        rule = milebench.find_rule(set_name, require_field(meta, "question_type", str))
    except (DataError, ValueError) as error:
        raise DataError(str(error), source=str(path)) from error

    def build(row: int, record: Record) -> Sample:
        instance = require_field(record, "task_instance", dict)
        choices = optional_field(instance, "choice_list", list) or []
        names = require_field(instance, "combined_1_images" if combined else "images_path", list)
        context = require_field(instance, "context", str) + _list_choices(choices, set_name, prompts)
        question = _place_images(f"{_find_instruction(record, meta)}\n{context}", len(names), combined)
        answer = {"text": require_field(record, "response", (str, int, float, list)), "rule": rule, "choices": choices}
        if answer["text"] == []:
            raise DataError("the list of responses is empty, expected at least one")
        milebench.score(answer["text"], "", rule=rule, choices=choices)
        return Sample(
            id=str(require_field(record, "sample_id", (str, int))),
            prompt=question,
            images=tuple(path.parent / "images" / str(name) for name in names),
            answer=answer,
            metadata={
                "question": question,
                "num_images": len(require_field(instance, "images_path", list)),
                **({"chance": 1 / len(choices)} if choices and rule == "choice" else {}),
            },
            cost=estimate_cost(question, len(names)),
        )

    return build_rows(path, records, build=build)


def _find_instruction(record: Record, meta: Mapping[str, Any]) -> str:
    """The instruction of a record: of a list by its place, of an object by its key."""
    key = require_field(record, "task_instruction_id", (str, int))
    instructions = optional_field(meta, "task_instruction", (list, dict))
    try:
        found = instructions[int(key)] if isinstance(instructions, list) else (instructions or {})[str(key)]
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"meta_data.task_instruction has no entry {key!r}") from error
    return str(found)


def _list_choices(choices: Sequence[Any], set_name: str, prompts: str) -> str:
    if not choices:
        return ""
    texts = [str(choice) for choice in choices]
    lines = "\n".join(texts) if set_name == "GPR1200" else letter_options(texts)
    return f"\nChoice list: \n{lines}{ENDINGS[prompts]}"


def _place_images(text: str, num_images: int, combined: bool) -> str:
    """`<image>` for every mark; pictures without one come first.

    Raises:
        DataError: More marks than pictures.
    """
    if combined:
        parts = _MARK.split(text)
        marked = "".join(f"{part}<Image {number}> " for number, part in enumerate(parts[:-1], start=1)) + parts[-1]
        return f"{IMAGE_PLACEHOLDER}\n" * num_images + marked
    text = _MARK.sub(IMAGE_PLACEHOLDER, text)
    num_missing = num_images - text.count(IMAGE_PLACEHOLDER)
    if num_missing < 0:
        raise DataError(f"the context places {num_images - num_missing} pictures, images_path has {num_images}")
    return IMAGE_PLACEHOLDER * num_missing + text


def _score(answer: Any, response: str, protocol: str) -> float:
    return milebench.score(answer["text"], response, rule=answer["rule"], choices=answer["choices"])


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, Any]:
    """Score by number of pictures; for options also the `robust` one, where an empty answer is wrong."""
    levels = estimate_groups((milebench.find_level(item.metadata["num_images"]), item.score) for item in scored)
    rights = [
        milebench.score_choice_robust(item.answer["text"], item.response, choices=item.answer["choices"])
        for item in scored
        if item.answer["rule"] == "choice"
    ]
    return {
        "by_level": {level: levels[level] for level in milebench.LEVELS if level in levels},
        **({"robust": vars(estimate_mean(rights))} if rights else {}),
    }


def make_task(name: str, prompts: str) -> Task | None:
    """The task of a set, `ALFRED`, or of its combined form, `ALFRED-combined-1`."""
    set_name = name.removesuffix(COMBINED)
    if set_name not in milebench.SETS:
        return None
    combined = name.endswith(COMBINED)
    annotation = Path("MileBench", set_name, f"{set_name}_combined_1.json" if combined else f"{set_name}.json")
    return Task(
        name=f"milebench/{name}",
        version=VERSION,
        source=SOURCE,
        annotation=annotation,
        read_samples=partial(
            read_samples, annotation=annotation, set_name=set_name, prompts=prompts, combined=combined
        ),
        max_new_tokens=MAX_NEW_TOKENS[prompts],
        max_num=1,
        score_answer=_score,
        protocols=PROTOCOLS,
        aggregate=aggregate,
        details={"prompts": prompts},
    )


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """T, S, NI and their mean, as mean over sets and as mean over tasks, by protocol; None where a set is missing."""
    summary: dict[str, Any] = {}
    for suffix, label in (("", "separate"), (COMBINED, "combined")):
        found = {name: results[name + suffix] for name in milebench.SETS if name + suffix in results}
        for protocol in PROTOCOLS if found else ():
            scores = {name: read_estimate(result["results"][protocol]) for name, result in found.items()}
            summary.setdefault(label, {})[protocol] = {
                reading: {group: value and vars(value) for group, value in averages.items()}
                for reading, averages in milebench.average_sets(scores).items()
            }
    return summary


FAMILY = TaskFamily(names=milebench.SETS, make=make_task, summarise=summarise)
