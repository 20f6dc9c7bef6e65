"""How many tokens a context has: the model's own tokenizer, tile counts from image headers.

Lengths are written as people say them: `8k` is 8,000 tokens, `1M` is 1,000,000, `16k-32k` a range. MM-NIAH's bins
count so too.
"""

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from internvl.data.encode import SampleEncoder, TextOptions
from internvl.data.meta import SourceSpec
from internvl.data.records import parse_record
from internvl.data.storage.media import read_image_size
from internvl.data.tiling import Tiling
from internvl.data.visuals import TileOptions
from internvl.errors import CheckpointError, ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.registration import load_tokenizer
from internvl.synth.miniature.benchmark_set import TokenCounter

TOLERANCE = 0.01  # of the asked length
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_LONGEST = 16_000_000
_NUMBER = r"(\d+(?:\.\d+)?)([kKmM]?)"


@dataclass(frozen=True)
class LengthRange:
    """Tokens that a sample may have.

    Attributes:
        low: Fewest.
        high: Most.
    """

    low: int
    high: int

    @property
    def label(self) -> str:
        """For file names: thousands, such as `16_32`, or `8`."""
        low, high = (f"{tokens / 1000:g}" for tokens in (self.low, self.high))
        return high if low == high else f"{low}_{high}"

    def draw(self, rng: Random) -> int:
        """A length of the range, uniform."""
        return rng.randint(self.low, self.high)


def parse_length(text: str) -> LengthRange:
    """`8k`, `131072`, `1M` or `16k-32k` -> LengthRange.

    Raises:
        argparse.ArgumentTypeError: Not of that form, or an empty range.
    """
    match = re.fullmatch(f"{_NUMBER}(?:-{_NUMBER})?", text)
    if match is None:
        raise ArgumentTypeError(f"got {text!r}, expected a length such as 8k, 1M or 16k-32k")
    low = round(float(match[1]) * _UNITS[match[2].lower()])
    high = low if match[3] is None else round(float(match[3]) * _UNITS[match[4].lower()])
    if not 1 <= low <= high <= _LONGEST:
        raise ArgumentTypeError(f"got {text!r}, expected 1 <= shortest <= longest <= {_LONGEST} tokens")
    return LengthRange(low, high)


@dataclass(frozen=True)
class ModelReader:
    """What a model makes of texts and images: their tokens.

    Attributes:
        tokenizer: Its tokenizer.
        encoder: Its training documents.
        counter: Counts text.
        max_num: Tile limit per image.
    """

    tokenizer: Any
    encoder: SampleEncoder
    counter: TokenCounter
    max_num: int

    def count_image(self, path: Path) -> int:
        """Visual tokens of an image, without its two markers.

        Raises:
            DataError: The image cannot be read.
        """
        return self.count_tiles(*read_image_size(path)) * self.encoder.text.num_image_token

    def count_tiles(self, width: int, height: int) -> int:
        """Tiles of an image of this size in pixels."""
        tiles = self.encoder.tiles
        tiling = Tiling(tiles.min_dynamic_patch, self.max_num, tiles.image_size, tiles.use_thumbnail)
        return tiling.count(width, height)

    def count_text(self, text: str) -> int:
        """Tokens of a text with `<image>` in it: the text and two markers per image."""
        return self.counter.count_text(text, text.count(IMAGE_PLACEHOLDER))

    def count_record(self, record: dict[str, Any], root: Path) -> int:
        """Tokens of a training record as the trainer encodes it, template and answer included.

        Raises:
            DataError: The trainer would refuse it.
        """
        spec = SourceSpec(name="built", annotation=root, root=root)
        return self.encoder.measure(parse_record(record, spec, row=0))[0]


@cache
def load_model_reader(checkpoint: Path, max_num: int | None = None) -> ModelReader:
    """Read tokenizer and sizes of a checkpoint folder.

    Args:
        checkpoint: An InternVL2 checkpoint.
        max_num: Tile limit per image; None: the checkpoint's.

    Raises:
        CheckpointError: It is no folder of an InternVL2 checkpoint.
    """
    tokenizer = load_tokenizer(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint} holds no config.json; give an InternVL2 checkpoint as --model")
    config = InternVLChatConfig.from_pretrained(checkpoint)
    max_num = config.max_dynamic_patch if max_num is None else max_num
    if max_num < 1:
        raise ConfigError(f"max_dynamic_patch is {max_num}, expected 1 or more")
    encoder = SampleEncoder(
        text=TextOptions(
            tokenizer=tokenizer,
            conversation_name=config.template or "internlm2-chat",
            num_image_token=config.num_image_token,
            max_seq_length=2 * _LONGEST,
        ),
        tiles=TileOptions(
            image_size=config.image_size,
            dynamic_image_size=max_num > 1,
            use_thumbnail=config.use_thumbnail,
            max_dynamic_patch=max_num,
        ),
    )
    return ModelReader(tokenizer, encoder, TokenCounter(tokenizer, config.num_image_token), max_num)


def describe_reader(reader: ModelReader) -> dict[str, Any]:
    """What of a model decides about lengths."""
    encoder = reader.encoder
    return {
        "tile": encoder.tiles.image_size,
        "num_image_token": encoder.text.num_image_token,
        "max_dynamic_patch": reader.max_num,
        "use_thumbnail": encoder.tiles.use_thumbnail,
        "template": encoder.text.conversation_name,
    }
