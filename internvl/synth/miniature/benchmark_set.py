"""Test items in MM-NIAH's form, at several lengths, with depths spread evenly.

Every context is asked three questions, one per task file:

    retrieval-text    the value of one text needle
    retrieval-image   the first digit of the image needle
    reasoning-image   its second digit

Both image tasks need the order of visual tokens. Lengths are counted with the model's tokenizer and tile counts, so
`context_length` is what the model really reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from internvl.errors import ConfigError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.miniature.contexts import (
    Context,
    ContextSpec,
    Needle,
    Part,
    TextNeedle,
    build_context,
    count_tiles_per_image,
    draw_needles,
    write_parts,
)
from internvl.synth.miniature.pictures import PicturePool
from internvl.synth.miniature.vocabulary import CATEGORIES, NUM_DIGITS, ORDINALS, ask_category, ask_digit

TASKS = ("retrieval-text", "retrieval-image", "reasoning-image")
NUM_DEPTHS = 5
_MAX_TRIES = 1000


class TokenCounter:
    """Counts the tokens of contexts as the model reads them.

    Args:
        tokenizer: The model's tokenizer.
        num_image_token: Visual tokens per tile.
    """

    def __init__(self, tokenizer: Any, num_image_token: int):
        self.num_image_token = num_image_token
        self._count_text = lru_cache(maxsize=4096)(
            lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
        )

    def count_text(self, text: str, num_images: int) -> int:
        """Text tokens, with `<img>` and `</img>` of every image."""
        return sum(self._count_text(piece) for piece in text.split(IMAGE_PLACEHOLDER)) + 2 * num_images

    def count_visual(self, parts: Sequence[Part]) -> int:
        """Visual tokens."""
        return self.num_image_token * sum(count_tiles_per_image(parts))

    def count(self, parts: Sequence[Part]) -> int:
        """All tokens of some parts."""
        return self.count_text(write_parts(parts), len(count_tiles_per_image(parts))) + self.count_visual(parts)


@dataclass(frozen=True)
class BenchmarkSpec:
    """How many items, how long.

    Attributes:
        context: What a context holds.
        base_tiles: Haystack tiles at length factor 1.
        factors: Length factors.
        num_items: Contexts per length; every task asks each of them once.
    """

    context: ContextSpec
    base_tiles: int
    factors: tuple[int, ...]
    num_items: int


def build_items(
    spec: BenchmarkSpec,
    pool: PicturePool,
    *,
    sentences: Sequence[str],
    counter: TokenCounter,
    rng: Random,
    tick: Callable[[], object],
) -> dict[str, list[dict[str, Any]]]:
    """Records by task; `tick` is called after every context.

    Raises:
        ConfigError: Contexts are too short to put a needle into every fifth.
    """
    items: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for factor in spec.factors:
        for number in range(spec.num_items):
            fifths = (number % NUM_DEPTHS, (number // NUM_DEPTHS + number) % NUM_DEPTHS)
            context, target = _draw_context(
                spec, pool, factor=factor, fifths=fifths, sentences=sentences, counter=counter, rng=rng
            )
            for task in TASKS:
                record = _write_record(task, context, target, counter)
                record["id"] = f"{task}-{factor}x-{number:04d}"
                record["meta"]["length_factor"] = factor
                items[task].append(record)
            tick()
    return items


def _draw_context(
    spec: BenchmarkSpec,
    pool: PicturePool,
    *,
    factor: int,
    fifths: tuple[int, int],
    sentences: Sequence[str],
    counter: TokenCounter,
    rng: Random,
) -> tuple[Context, TextNeedle]:
    """A context whose text needle and image needle stand in the wanted fifths, and that text needle."""
    for _ in range(_MAX_TRIES):
        needles = draw_needles(spec.context, pool, rng)
        target = next(needle for needle in needles if isinstance(needle, TextNeedle))
        picture = next(needle for needle in needles if not isinstance(needle, TextNeedle))
        wanted: Mapping[Needle, int] = dict(zip((target, picture), fifths, strict=True))
        context = build_context(
            spec.context,
            pool,
            num_tiles=spec.base_tiles * factor,
            needles=needles,
            sentences=sentences,
            rng=rng,
            depths={needle: (fifth + rng.random()) / NUM_DEPTHS for needle, fifth in wanted.items()},
        )
        if all(int(measure_depth(context, needle, counter) * NUM_DEPTHS) == fifth for needle, fifth in wanted.items()):
            return context, target
    raise ConfigError(
        f"no context of {spec.base_tiles * factor} tiles has needles in fifths {fifths}; raise base_tiles"
    )


def measure_depth(context: Context, needle: Needle, counter: TokenCounter) -> float:
    """Tokens in front of the needle divided by the tokens of the context."""
    return counter.count(context.parts_before(needle)) / counter.count(context.parts)


def _write_record(task: str, context: Context, target: TextNeedle, counter: TokenCounter) -> dict[str, Any]:
    question, answer, needle, shown, chance = _ask(task, context, target)
    num_text = counter.count_text(context.text, len(context.images))
    num_visual = counter.count_visual(context.parts)
    return {
        "id": "",
        "images_list": context.images,
        "context": context.text,
        "question": question,
        "answer": answer,
        "meta": {
            "placed_depth": round(measure_depth(context, needle, counter), 6),
            "context_length": num_text + num_visual,
            "context_length_text": num_text,
            "context_length_image": num_visual,
            "num_images": len(context.images),
            "needles": [shown],
            "choices": None,
            "choices_image_path": None,
            "chance": chance,
        },
    }


def _ask(task: str, context: Context, target: TextNeedle) -> tuple[str, str, Needle, str, float]:
    """(question, answer, needle, how the needle is shown, chance level) of a task."""
    if task == "retrieval-text":
        chance = 1 / len(CATEGORIES[target.category])
        return ask_category(target.category), target.value, target, target.sentence, chance
    picture = context.image_needle
    place = TASKS.index(task) - 1
    return ask_digit(ORDINALS[place]), str(picture.digits[place]), picture, picture.path, 1 / NUM_DIGITS
