"""Training samples in V2PE-Data's form: the context stands in the first turn, then question after question.

    {"id": ..., "image": ["haystack/4x3_000.jpg", ...],
     "conversations": [{"from": "human", "value": "<image>Note \\"mango\\".<image>...\\nWhich fruit?\\nAnswer ..."},
                       {"from": "gpt", "value": "mango"}, {"from": "human", "value": "Which digit is first?..."}, ...]}

Questions are phrased as evaluation phrases them, with the same closing sentence.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from internvl.synth.miniature.contexts import Context, ContextSpec, build_context, draw_needles
from internvl.synth.miniature.pictures import PicturePool
from internvl.synth.miniature.vocabulary import ORDINALS, SHORT_ANSWER_SENTENCE, ask_category, ask_digit


@dataclass(frozen=True)
class TrainFile:
    """One annotation file.

    Attributes:
        min_tiles: Fewest haystack tiles of a sample.
        max_tiles: Most haystack tiles.
        num_samples: Lines.
    """

    min_tiles: int
    max_tiles: int
    num_samples: int

    @property
    def name(self) -> str:
        """Name of the data set, after V2PE-Data's pattern."""
        return f"train_long_mr_{self.min_tiles}_{self.max_tiles}"


@dataclass(frozen=True)
class TrainingSpec:
    """How samples are drawn.

    Attributes:
        context: What a context holds.
        length_skew: Tiles are `min + (max - min + 1) * u ** length_skew` for uniform u: 1 is uniform, 2 prefers short.
        num_questions: Questions per sample; None asks for every needle once.
    """

    context: ContextSpec
    length_skew: float = 1.0
    num_questions: int | None = None


def list_questions(context: Context) -> list[tuple[str, str]]:
    """(question, answer) for every text needle, then for both digits of the image needle."""
    questions = [(ask_category(needle.category), needle.value) for needle in context.text_needles]
    digits = zip(ORDINALS, context.image_needle.digits, strict=True)
    return [*questions, *((ask_digit(ordinal), str(digit)) for ordinal, digit in digits)]


def build_record(
    spec: TrainingSpec, file: TrainFile, pool: PicturePool, sentences: Sequence[str], rng: Random
) -> dict[str, Any]:
    """One sample, without its id."""
    num_tiles = file.min_tiles + int((file.max_tiles - file.min_tiles + 1) * rng.random() ** spec.length_skew)
    context = build_context(
        spec.context,
        pool,
        num_tiles=num_tiles,
        needles=draw_needles(spec.context, pool, rng),
        sentences=sentences,
        rng=rng,
    )
    questions = list_questions(context)
    questions = rng.sample(questions, min(spec.num_questions or len(questions), len(questions)))
    return {"image": context.images, "conversations": list(_write_turns(context, questions))}


def _write_turns(context: Context, questions: Sequence[tuple[str, str]]) -> Iterator[dict[str, str]]:
    opening = context.text
    for question, answer in questions:
        yield {"from": "human", "value": f"{opening}{question}\n{SHORT_ANSWER_SENTENCE}"}
        yield {"from": "gpt", "value": answer}
        opening = ""


def write_training_file(
    path: Path,
    spec: TrainingSpec,
    file: TrainFile,
    *,
    pool: PicturePool,
    sentences: Sequence[str],
    rng: Random,
    tick: Callable[[], object],
) -> None:
    """Write one annotation file, a sample a line; `tick` is called after every sample."""
    with path.open("w", encoding="utf-8") as lines:
        for row in range(file.num_samples):
            record = {"id": f"{file.name}-{row:06d}", **build_record(spec, file, pool, sentences, rng)}
            lines.write(json.dumps(record) + "\n")
            tick()


def describe_sources(
    files: Sequence[TrainFile], *, annotation_folder: str, image_folder: str, max_num: int
) -> dict[str, dict[str, Any]]:
    """The meta json of these files; paths are relative to the data root."""
    return {
        file.name: {
            "root": image_folder,
            "annotation": f"{annotation_folder}/{file.name}.jsonl",
            "data_augment": False,
            "repeat_time": 1,
            "max_dynamic_patch": max_num,
            "dynamic_image_size": True,
            "length": file.num_samples,
        }
        for file in files
    }
