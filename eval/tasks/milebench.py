"""MileBench: 29 sets of many pictures (Song et al. 2024, arXiv 2404.18532).

    DATA_ROOT/MileBench/SET/SET.json                     meta_data, data
    DATA_ROOT/MileBench/SET/images/                      pictures
    DATA_ROOT/MileBench/SET/SET_combined_1.json          all pictures of a sample on one canvas: task SET-combined-1

Prompts: `upstream` ends with the sentence of the other multiple-choice sets and allows 32 tokens, `official` ends with
`Your answer is: ` and allows 512. Contexts are never cut (upstream keeps their last 512,000 tokens). With combined
pictures the canvas comes first and `<Image 3> ` marks the place of its third picture, as officially.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

from eval.core.fields import parse_rows, read_object
from eval.core.sample import Sample
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import milebench
from eval.metrics.estimate import estimate_groups, estimate_mean, read_estimate
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import OPTION_SENTENCE, Results, estimate_cost, find_numbers, letter_options, use_one_rule
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

ENDINGS = {"upstream": f"\n{OPTION_SENTENCE}", "official": "\nYour answer is: "}
MAX_NEW_TOKENS = {"upstream": 32, "official": 512}
COMBINED = "-combined-1"
_MARK = re.compile(r"\{(?:image|table)#\d+\}")


class _Answer(TypedDict):
    text: str | int | float | list[object]
    rule: milebench.Rule
    choices: list[object]


@dataclass(frozen=True)
class _Instance:
    context: str
    images_path: list[object]
    combined_1_images: list[object] | None = None
    choice_list: list[object] = field(default_factory=list)


@dataclass(frozen=True)
class _Record:
    sample_id: str | int
    task_instruction_id: str | int
    task_instance: _Instance
    response: str | int | float | list[object]


@dataclass(frozen=True)
class _Meta:
    question_type: str
    task_instruction: list[object] | dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class _SetFile:
    meta_data: _Meta
    data: list[object]


def read_samples(data_root: Path, *, annotation: Path, set_name: str, prompts: str, combined: bool) -> list[Sample]:
    """All samples of a set. Raises DataError for a bad record."""
    path = data_root / annotation
    content = read_object(path, _SetFile)
    meta = content.meta_data
    try:
        rule = milebench.find_rule(set_name, meta.question_type)
    except ValueError as error:
        raise DataError(str(error), source=str(path)) from error

    def build(row: int, record: _Record) -> Sample:
        instance, choices = record.task_instance, record.task_instance.choice_list
        names = instance.combined_1_images if combined else instance.images_path
        if names is None:
            raise DataError("the field 'task_instance.combined_1_images' is missing")
        context = instance.context + _list_choices(choices, set_name, prompts)
        instruction = _find_instruction(meta.task_instruction, record.task_instruction_id)
        question = _place_images(f"{instruction}\n{context}", len(names), combined)
        answer: _Answer = {"text": record.response, "rule": rule, "choices": choices}
        if record.response == []:
            raise DataError("the list of responses is empty, expected at least one")
        _score(answer, "")  # an answer that is not among the choices shows here, not after the run
        return Sample(
            id=str(record.sample_id),
            prompt=question,
            images=tuple(path.parent / "images" / str(name) for name in names),
            answer=answer,
            metadata={
                "question": question,
                "num_images": len(instance.images_path),
                **({"chance": 1 / len(choices)} if choices and rule == "choice" else {}),
            },
            cost=estimate_cost(question, len(names)),
        )

    return parse_rows(path, content.data, _Record, build)


def _find_instruction(instructions: list[object] | dict[str, object], key: str | int) -> str:
    """An instruction, of a list by its place, of an object by its key."""
    try:
        return str(instructions[int(key)] if isinstance(instructions, list) else instructions[str(key)])
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"meta_data.task_instruction has no entry {key!r}") from error


def _list_choices(choices: Sequence[object], set_name: str, prompts: str) -> str:
    if not choices:
        return ""
    # As officially, the options of GPR1200 get no letters.
    lines = "\n".join(map(str, choices)) if set_name == "GPR1200" else letter_options(choices)
    return f"\nChoice list: \n{lines}{ENDINGS[prompts]}"


def _place_images(text: str, num_images: int, combined: bool) -> str:
    """`<image>` for every mark; pictures without a mark come first. Raises DataError for marks without a picture."""
    if combined:
        parts = _MARK.split(text)
        marked = "".join(f"{part}<Image {number}> " for number, part in enumerate(parts[:-1], start=1)) + parts[-1]
        return f"{IMAGE_PLACEHOLDER}\n" * num_images + marked
    text = _MARK.sub(IMAGE_PLACEHOLDER, text)
    num_missing = num_images - text.count(IMAGE_PLACEHOLDER)
    if num_missing < 0:
        raise DataError(f"the context places {num_images - num_missing} pictures, images_path has {num_images}")
    return IMAGE_PLACEHOLDER * num_missing + text


def _score(answer: _Answer, response: str) -> float:
    """The rule of the set."""
    return milebench.score(answer["text"], response, rule=answer["rule"], choices=answer["choices"])


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
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
        version=1,
        source="https://huggingface.co/datasets/FreedomIntelligence/MileBench",
        annotation=annotation,
        read_samples=partial(
            read_samples, annotation=annotation, set_name=set_name, prompts=prompts, combined=combined
        ),
        max_new_tokens=MAX_NEW_TOKENS[prompts],
        max_num=1,
        score_answer=use_one_rule(_score),
        protocols=PROTOCOLS,
        aggregate=aggregate,
        details={"prompts": prompts},
    )


def summarise(results: Results) -> dict[str, object]:
    """T, S, NI and their mean, as mean over sets and as mean over tasks, by protocol; None where a set is missing."""
    summary: dict[str, object] = {}
    for suffix, label in (("", "separate"), (COMBINED, "combined")):
        found = [name for name in milebench.SETS if name + suffix in results]
        if found:
            numbers = find_numbers(results, [name + suffix for name in found])
            summary[label] = {protocol: _average(found, rows) for protocol, rows in numbers.items()}
    return summary


def _average(names: Sequence[str], numbers: Sequence[Mapping[str, float]]) -> dict[str, object]:
    averages = milebench.average_sets(dict(zip(names, map(read_estimate, numbers), strict=True)))
    return {
        reading: {group: value and vars(value) for group, value in groups.items()}
        for reading, groups in averages.items()
    }


FAMILY = TaskFamily(names=milebench.SETS, make=make_task, summarise=summarise)
