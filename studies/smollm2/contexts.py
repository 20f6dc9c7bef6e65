"""Test contexts of the study: words between pictures at several lengths, all words of a context asked for.

    OUT/MM-NIAH/mm_niah_test/annotations/retrieval-text-LENGTHk.jsonl     the questions, context after context
    OUT/MM-NIAH/mm_niah_test/images/

The miniature set asks one word per context. Here reading a context takes minutes and a further question a second.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

from internvl.atomic import stage_folders
from internvl.synth.contexts import PieceCounter
from internvl.synth.forms import ITEM_IMAGES, ITEMS, Record, write_lines
from internvl.synth.miniature.benchmark_items import write_context_item
from internvl.synth.miniature.grids import TileShares
from internvl.synth.miniature.image_pool import PoolSpec, make_pool
from internvl.synth.miniature.sentences import read_sentences
from internvl.synth.miniature.tile_contexts import ContextMaker, ContextSpec, Needle, TextNeedle
from internvl.synth.model_reader import ModelReader

MAX_NUM = 64  # tiles per picture
NUM_WORDS = 8  # in a context, each of another category
NUM_TEXT = 224  # tokens of a context that are left for words, a sentence and the marks of pictures
NUM_NEEDLE_TILES = 2  # of the picture with digits, which every context of the miniature set has


def parse_count(text: str) -> tuple[int, int]:
    """`LENGTH:COUNT` as numbers; argparse.ArgumentTypeError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LENGTH:COUNT, for example 8:4")
    return int(match[1]), int(match[2])


def write_contexts(out: Path, reader: ModelReader, counts: Mapping[int, int], *, seed: int) -> None:
    """Make the folder `out`, unless it is there; `counts`: length in units of 1,024 tokens -> number of contexts."""
    if out.is_dir():
        return
    tiles = {length: (1024 * length - NUM_TEXT) // reader.num_image_token - NUM_NEEDLE_TILES for length in counts}
    shares = TileShares(MAX_NUM, max(tiles.values()))
    with stage_folders(out.parent, [Path(out.name)]) as staging:
        images = staging / out.name / ITEM_IMAGES
        annotations = staging / out.name / ITEMS
        for folder in (images, annotations):
            folder.mkdir(parents=True)
        pool = PoolSpec(reader.tile, reader.num_image_token, MAX_NUM, shares.image_tiles, num_needles=100)
        spec = ContextSpec((NUM_WORDS, NUM_WORDS), (0, 1), shares)
        files = make_pool(images, pool, split="test", rng=Random(f"{seed}/images"))
        maker = ContextMaker(spec, files, read_sentences("test"))
        for length, count in counts.items():
            rng = Random(f"{seed}/{length}")
            records = (
                record
                for number in range(count)
                for record in _ask_context(f"{length}k-{number:03d}", tiles[length], maker, reader, rng)
            )
            write_lines(annotations / f"retrieval-text-{length}k.jsonl", records)


def _ask_context(name: str, num_tiles: int, maker: ContextMaker, reader: ModelReader, rng: Random) -> Iterator[Record]:
    """The questions about one context, whose words stand at about even distances."""
    needles = maker.draw_needles(rng)
    words = [needle for needle in needles if isinstance(needle, TextNeedle)]
    depths: dict[Needle, float] = {word: (place + rng.random()) / len(words) for place, word in enumerate(words)}
    context = maker.build(num_tiles, needles, rng, depths=depths)
    counter = PieceCounter(reader.count_text)
    for place, word in enumerate(rng.sample(words, len(words))):
        yield write_context_item(f"{name}-{place}", context, context.ask_for_value(word), counter)
