"""Training records of the miniature set: the context stands in the first turn, then question after question.

{"id": ..., "image": ["haystack/4x3_000.jpg", ...],
 "conversations": [{"from": "human", "value": "<image>Note \\"mango\\".<image>...\\nWhich fruit?\\nAnswer ..."},
                   {"from": "gpt", "value": "mango"}, {"from": "human", "value": "Which digit is first?..."}, ...]}
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from internvl.synth.forms import Record, write_conversation
from internvl.synth.miniature.tile_contexts import ContextMaker
from internvl.synth.miniature.vocabulary import ORDINALS


@dataclass(frozen=True)
class TrainFile:
    """One annotation file."""

    min_tiles: int  # fewest haystack tiles of a sample
    max_tiles: int  # most haystack tiles
    num_samples: int

    @property
    def name(self) -> str:
        """Name of the data set, after V2PE-Data's pattern."""
        return f"train_long_mr_{self.min_tiles}_{self.max_tiles}"


@dataclass(frozen=True)
class TrainingSpec:
    """How samples are drawn."""

    # Tiles are `min + (max - min + 1) * u ** length_skew` for uniform u: 1 is uniform, 2 prefers short
    length_skew: float = 1.0
    num_questions: int | None = None  # questions per sample; None asks for every needle once
    words: tuple[str, ...] = ORDINALS  # digits of the image needle that are asked for


def draw_records(file: TrainFile, spec: TrainingSpec, maker: ContextMaker, rng: Random) -> Iterator[Record]:
    """The records of an annotation file."""
    for row in range(file.num_samples):
        num_tiles = file.min_tiles + int((file.max_tiles - file.min_tiles + 1) * rng.random() ** spec.length_skew)
        context = maker.build(num_tiles, maker.draw_needles(rng), rng)
        questions = [context.ask_for_value(needle) for needle in context.text_needles]
        questions += [context.ask_for_digit(word) for word in spec.words]
        # In a fixed order a model would learn the turn of a question instead of the question.
        asked = rng.sample(questions, min(spec.num_questions or len(questions), len(questions)))
        turns = write_conversation(context.text, asked)
        yield {"id": f"{file.name}-{row:06d}", "image": context.images, "conversations": turns}
