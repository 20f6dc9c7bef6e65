"""The forms of data on disk: V2PE-Data's training records with their meta json, and MM-NIAH's test items.

record   {"id", "image": [...], "conversations": [{"from": "human", "value": "<image>..."}, ...], "metadata"}
meta     {"NAME": {"root", "annotation", "max_dynamic_patch", ...}}
item     {"id", "images_list", "context", "question", "answer", "meta": {"placed_depth", "context_length", ...}}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from internvl.synth.questions import Question, write_answer, write_question

Record = dict[str, Any]  # a line of json, of ours or of a published data set
Split = Literal["train", "test"]

MM_NIAH = "MM-NIAH/mm_niah_test"
ITEMS, ITEM_IMAGES = f"{MM_NIAH}/annotations", f"{MM_NIAH}/images"


def write_turns(context: str, questions: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """A conversation of (question, answer) pairs; the context stands in front of the first question."""
    turns: list[dict[str, str]] = []
    for question, answer in questions:
        turns += [{"from": "human", "value": f"{context}{question}"}, {"from": "gpt", "value": answer}]
        context = ""
    return turns


def write_conversation(context: str, questions: Iterable[Question]) -> list[dict[str, str]]:
    """A conversation that asks as evaluation asks."""
    return write_turns(context, ((write_question(question), write_answer(question)) for question in questions))


def write_item(name: str, context: str, images: Sequence[str], question: Question, meta: Record) -> Record:
    """An item of MM-NIAH; options and closing sentence are added by the benchmark."""
    return {
        "id": name,
        "images_list": list(images),
        "context": context,
        "question": question.text,
        "answer": question.gold,
        "meta": meta,
    }


def write_lengths(num_text: int, num_visual: int, num_images: int) -> Record:
    """The sizes of a context, under MM-NIAH's names."""
    return {
        "context_length": num_text + num_visual,
        "context_length_text": num_text,
        "context_length_image": num_visual,
        "num_images": num_images,
    }


def describe_source(*, root: str, annotation: str, num_samples: int, max_num: int) -> Record:
    """The entry of a training file in a meta json; `root` and `annotation` are relative to the data root."""
    return {
        "root": root,
        "annotation": annotation,
        "data_augment": False,
        "repeat_time": 1,
        "max_dynamic_patch": max_num,
        "dynamic_image_size": max_num > 1,
        "length": num_samples,
    }


def write_meta(path: Path, sources: Mapping[str, Record]) -> None:
    """Write a meta json."""
    path.write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write records, one a line."""
    with path.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record) + "\n")
