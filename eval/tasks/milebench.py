"""MileBench: 29 sets of many pictures (Song et al. 2024, arXiv 2404.18532).

    DATA_ROOT/MileBench/SET/SET.json                     meta_data, data
    DATA_ROOT/MileBench/SET/images/                      pictures
    DATA_ROOT/MileBench/SET/combined_1_images/           all pictures of a sample on one canvas: task SET-combined-1
    DATA_ROOT/MileBench/SET/combined_N_images/           on at most N canvases, with SET_combined_N.json: SET-combined-N

Prompts: `upstream` ends with the sentence of the other multiple-choice sets and allows 32 tokens, `official` ends with
`Your answer is: ` and allows 512. Contexts are never cut (upstream keeps their last 512,000 tokens). As in both public
codes, one picture without a mark stands between instruction and context, and further ones are not shown. With combined
pictures the canvases come first and `<Image 3> ` marks the place of the third picture, as officially.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

from eval.core.data_root import Root, find_media
from eval.core.fields import KEY, WHOLE, parse_rows, read_object
from eval.core.records import JsonObject
from eval.core.sample import Sample
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import milebench
from eval.metrics.estimate import estimate_groups, estimate_mean, read_estimate
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import OPTION_SENTENCE, Results, estimate_cost, find_numbers, use_one_rule
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

ENDINGS = {"upstream": f"\n{OPTION_SENTENCE}", "official": "\nYour answer is: "}
MAX_NEW_TOKENS = {"upstream": 32, "official": 512}
_MARK = re.compile(r"\{(?:image|table)#(\d+)\}")
_COMBINED = re.compile(r"(?P<set_name>.+)-combined-(?P<num_canvases>[1-9]\d*)")


class _Answer(TypedDict):
    text: str | int | float | list[object]
    rule: milebench.Rule
    choices: list[object]


@dataclass(frozen=True)
class _Instance:
    context: str
    images_path: list[str]
    choice_list: list[object] = field(default_factory=list)
    fields: JsonObject = field(default_factory=dict, metadata={KEY: WHOLE})  # with the canvases, by number of them


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
    data: list[dict[str, object]]


def read_samples(
    data_root: Root, *, annotation: Path, set_name: str, prompts: str, num_canvases: int | None
) -> list[Sample]:
    """All samples of a set, with its pictures on canvases unless `num_canvases` is None.

    Raises DataError for a bad record.
    """
    path = data_root / annotation
    folder = path.parent / ("images" if num_canvases is None else name_canvas_folder(num_canvases))
    content = read_object(path, _SetFile)
    meta = content.meta_data
    try:
        rule = milebench.find_rule(set_name, meta.question_type)
    except ValueError as error:
        raise DataError(str(error), source=str(path)) from error

    def build(row: int, record: _Record) -> Sample:
        instance, choices = record.task_instance, record.task_instance.choice_list
        context = instance.context + _list_choices(choices, set_name, prompts)
        instruction = _find_instruction(meta.task_instruction, record.task_instruction_id)
        if num_canvases is None:
            context, num_shown = _place_images(context, len(instance.images_path))
            names, question = instance.images_path[-num_shown:] if num_shown else [], f"{instruction}\n{context}"
        else:
            names = _list_canvases(record, num_canvases)
            context = _MARK.sub(r"<Image \1> ", context)
            question = f"{IMAGE_PLACEHOLDER}\n" * len(names) + f"{instruction}\n{context}"
        answer: _Answer = {"text": record.response, "rule": rule, "choices": choices}
        if record.response == []:
            raise DataError("the list of responses is empty, expected at least one")
        _score(answer, "")  # an answer that is not among the choices shows here, not after the run
        return Sample(
            id=str(record.sample_id),
            prompt=question,
            images=tuple(find_media(name, data_root, (folder,)) for name in names),
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
    # As officially, the options of GPR1200 get no letters, and after Z come the characters after it.
    lines = (f"{'' if set_name == 'GPR1200' else f'{chr(65 + place)}. '}{text}" for place, text in enumerate(choices))
    return "\nChoice list: \n" + "\n".join(lines) + ENDINGS[prompts]


def _place_images(context: str, num_images: int) -> tuple[str, int]:
    """`<image>` for every mark and for one picture without a mark, which comes first; the number of them.

    Raises DataError for marks without a picture.
    """
    context = _MARK.sub(IMAGE_PLACEHOLDER, context)
    num_placed = context.count(IMAGE_PLACEHOLDER)
    if num_placed > num_images:
        raise DataError(f"the context places {num_placed} pictures, images_path has {num_images}")
    if num_placed == num_images:
        return context, num_images
    return IMAGE_PLACEHOLDER + context, num_placed + 1


def _list_canvases(record: _Record, num_canvases: int) -> list[str]:
    """The files of a sample's canvases: those that the record names, else those that the combining script writes."""
    field_name = name_canvas_folder(num_canvases)
    names = record.task_instance.fields.get(field_name)
    if not isinstance(names, list | None):
        raise DataError(f"the field {field_name!r} is a {type(names).__name__}, expected list")
    return names or name_canvases(record.sample_id, len(record.task_instance.images_path), num_canvases)


def name_canvas_folder(num_canvases: int) -> str:
    """The folder of canvases beside `images`."""
    return f"combined_{num_canvases}_images"


def name_canvases(sample_id: str | int, num_images: int, num_canvases: int) -> list[str]:
    """The files of a sample's canvases, named as the benchmark's own script does."""
    canvases = milebench.plan_canvases(num_images, max_images=num_canvases)
    return [f"{sample_id}-{number}.jpg" for number in range(len(canvases))]


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
    set_name, num_canvases = _split_name(name)
    if set_name not in milebench.SETS:
        return None
    # As publicly, the file of the set itself serves for one canvas.
    file = f"{set_name}_combined_{num_canvases}.json" if (num_canvases or 1) > 1 else f"{set_name}.json"
    annotation = Path("MileBench", set_name, file)
    return Task(
        name=f"milebench/{name}",
        version=2,
        source="https://huggingface.co/datasets/FreedomIntelligence/MileBench",
        annotation=annotation,
        read_samples=partial(
            read_samples, annotation=annotation, set_name=set_name, prompts=prompts, num_canvases=num_canvases
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
    for num_canvases in sorted({_split_name(name)[1] for name in results}, key=lambda number: number or 0):
        names = {_split_name(name)[0]: name for name in results if _split_name(name)[1] == num_canvases}
        found = [set_name for set_name in milebench.SETS if set_name in names]
        numbers = find_numbers(results, [names[set_name] for set_name in found])
        label = {None: "separate", 1: "combined"}.get(num_canvases, f"combined_{num_canvases}")
        summary[label] = {protocol: _average(found, rows) for protocol, rows in numbers.items()}
    return summary


def _split_name(name: str) -> tuple[str, int | None]:
    """(set, number of canvases); None for separate pictures."""
    match = _COMBINED.fullmatch(name)
    return (match["set_name"], int(match["num_canvases"])) if match else (name, None)


def _average(names: Sequence[str], numbers: Sequence[Mapping[str, float]]) -> dict[str, object]:
    averages = milebench.average_sets(dict(zip(names, map(read_estimate, numbers), strict=True)))
    return {
        reading: {group: value and vars(value) for group, value in groups.items()}
        for reading, groups in averages.items()
    }


FAMILY = TaskFamily(names=milebench.SETS, make=make_task, summarise=summarise)
