"""Test items of the miniature set in MM-NIAH's form, at several lengths, with depths spread evenly.

Every context is asked three questions, one per task file (digit_layouts.py):

    retrieval-text         the value of one text needle
    retrieval-image        the first digit of the image needle
    reasoning-image        its second digit
    retrieval-image-order  in another layout, the first digit or the second
    reasoning-image-sides  the left digit or the right one

All image tasks need the places of visual tokens. Lengths are counted with the model's tokenizer and tile counts, so
`context_length` is what the model really reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from internvl.errors import ConfigError
from internvl.synth.contexts import PieceCounter
from internvl.synth.forms import Record, write_item, write_lengths
from internvl.synth.miniature.digit_layouts import PAIR, DigitLayout
from internvl.synth.miniature.tile_contexts import ContextMaker, Needle, TextNeedle, TileContext
from internvl.synth.questions import Question

TEXT_TASK = "retrieval-text"
NUM_DEPTHS = 5
_MAX_TRIES = 1000


@dataclass(frozen=True)
class BenchmarkSpec:
    """How many items, how long."""

    base_tiles: int  # haystack tiles at length factor 1
    factors: tuple[int, ...]
    num_items: int  # contexts per length; every task asks each of them once
    layout: DigitLayout = PAIR  # of the digits in an image needle


def draw_items(
    spec: BenchmarkSpec, maker: ContextMaker, counter: PieceCounter, rng: Random
) -> Iterator[dict[str, Record]]:
    """Items by task, one context after the other; ConfigError if contexts are too short for needles in every fifth."""
    for factor in spec.factors:
        for number in range(spec.num_items):
            fifths = (number % NUM_DEPTHS, (number // NUM_DEPTHS + number) % NUM_DEPTHS)
            context, target = _draw_context(spec.base_tiles * factor, fifths, maker, counter, rng)
            questions = {TEXT_TASK: context.ask_for_value(target)}
            for task, words in spec.layout.tasks.items():
                questions[task] = context.ask_for_digit(words[number % len(words)])
            items = {}
            for task, question in questions.items():
                items[task] = write_context_item(f"{task}-{factor}x-{number:04d}", context, question, counter)
                items[task]["meta"]["length_factor"] = factor
            yield items


def _draw_context(
    num_tiles: int, fifths: tuple[int, int], maker: ContextMaker, counter: PieceCounter, rng: Random
) -> tuple[TileContext, TextNeedle]:
    """A context whose text needle and image needle stand in the wanted fifths, and that text needle."""
    for _ in range(_MAX_TRIES):
        needles = maker.draw_needles(rng)
        target = next(needle for needle in needles if isinstance(needle, TextNeedle))
        picture = next(needle for needle in needles if not isinstance(needle, TextNeedle))
        wanted: dict[Needle, int] = {target: fifths[0], picture: fifths[1]}
        depths = {needle: (fifth + rng.random()) / NUM_DEPTHS for needle, fifth in wanted.items()}
        context = maker.build(num_tiles, needles, rng, depths=depths)
        # Depths are wanted in tiles and measured in tokens; where they differ too much, another context is drawn.
        if all(int(measure_depth(context, n, counter) * NUM_DEPTHS) == fifth for n, fifth in wanted.items()):
            return context, target
    raise ConfigError(f"no context of {num_tiles} tiles has needles in fifths {fifths}; raise base_tiles")


def measure_depth(context: TileContext, needle: Needle, counter: PieceCounter) -> float:
    """Tokens in front of the needle over the tokens of the context, its last line break not counted."""
    return counter.measure_depth(context.pieces, context.find(needle), sum(counter.count(context.pieces)))


def write_context_item(name: str, context: TileContext, question: Question, counter: PieceCounter) -> Record:
    """The item that asks a question about a context, with its lengths, and the depth of the needle."""
    (asked,) = question.asked
    needle = context.needles[asked]
    num_visual = sum(piece.num_visual for piece in context.pieces)
    meta = {
        "placed_depth": round(measure_depth(context, needle, counter), 6),
        **write_lengths(counter.count_text(context.text), num_visual, len(context.images)),
        "needles": [needle.piece.shown],
        "choices": None,
        "choices_image_path": None,
        "chance": question.chance,
    }
    return write_item(name, context.text, context.images, question, meta)
