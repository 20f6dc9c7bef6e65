"""Token counts of texts, images and training records, for the model that will read the data.

Text is counted with the model's tokenizer. Images are counted in tiles, which follow from the sizes in their headers.
"""

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from internvl.data.encode import SampleEncoder, TextOptions
from internvl.data.meta import SourceSpec
from internvl.data.records import parse_record
from internvl.data.storage.media import read_image_size
from internvl.data.tiling import Tiling
from internvl.data.visuals import TileOptions
from internvl.errors import CheckpointError, ConfigError
from internvl.model.checkpoint_folder import find_checkpoint
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.registration import load_tokenizer
from internvl.synth.lengths import LONGEST

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


class TextCounter:
    """Counts the tokens of texts as a prompt has them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._count_plain = lru_cache(maxsize=4096)(
            lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
        )

    def __call__(self, text: str) -> int:
        """Tokens of a text with `<image>` in it: of the text, and of two markers per image."""
        texts = text.split(IMAGE_PLACEHOLDER)  # counted one by one, since no token spans an image
        return sum(map(self._count_plain, texts)) + 2 * (len(texts) - 1)


@dataclass(frozen=True)
class ModelReader:
    """Counts what a checkpoint makes of texts and images."""

    checkpoint: Path
    encoder: SampleEncoder  # encodes training documents as the trainer does
    count_text: TextCounter  # tokens of a text with `<image>` in it

    @property
    def max_num(self) -> int:
        """Tile limit per image."""
        return self.encoder.tiles.max_dynamic_patch

    @property
    def tile(self) -> int:
        """Side of a tile in pixels."""
        return self.encoder.tiles.image_size

    @property
    def num_image_token(self) -> int:
        """Visual tokens per tile."""
        return self.encoder.text.num_image_token

    @cached_property
    def tokenizer_digest(self) -> str:
        """sha256 of the tokenizer's model files."""
        paths = (self.checkpoint / name for name in _TOKENIZER_FILES)
        return sha256(b"".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()

    def count_image(self, path: Path) -> int:
        """Visual tokens of an image, without its two markers; DataError if it cannot be read."""
        return self.count_canvas(*read_image_size(path))

    def count_canvas(self, width: int, height: int) -> int:
        """Visual tokens of an image of this size in pixels."""
        tiles = self.encoder.tiles
        tiling = Tiling(tiles.min_dynamic_patch, self.max_num, tiles.image_size, tiles.use_thumbnail)
        return tiling.count(width, height) * self.num_image_token

    def count_record(self, record: object, root: Path) -> int:
        """Tokens of a training record, template and answer included; DataError if the trainer would refuse it."""
        spec = SourceSpec(name="built", annotation=root, root=root)
        return self.encoder.measure(parse_record(record, spec, row=0))[0]

    def describe(self) -> dict[str, object]:
        """The properties of the model that decide about lengths."""
        return {
            "tile": self.tile,
            "num_image_token": self.num_image_token,
            "max_dynamic_patch": self.max_num,
            "use_thumbnail": self.encoder.tiles.use_thumbnail,
            "template": self.encoder.text.conversation_name,
        }


@cache
def load_model_reader(checkpoint: Path, max_num: int | None = None) -> ModelReader:
    """Read tokenizer and sizes of an InternVL2 checkpoint; `max_num` None takes its own tile limit.

    Raises:
        CheckpointError: The folder holds no InternVL2 checkpoint.
        ConfigError: The tile limit is below 1.
    """
    checkpoint = find_checkpoint(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint} holds no config.json; give an InternVL2 checkpoint")
    config = InternVLChatConfig.from_pretrained(checkpoint)
    max_num = config.max_dynamic_patch if max_num is None else max_num
    if max_num < 1:
        raise ConfigError(f"max_dynamic_patch is {max_num}, expected 1 or more")
    encoder = SampleEncoder(
        text=TextOptions(
            tokenizer=tokenizer,
            conversation_name=config.template or "internlm2-chat",
            num_image_token=config.num_image_token,
            max_seq_length=2 * LONGEST,
        ),
        tiles=TileOptions(
            image_size=config.image_size,
            dynamic_image_size=max_num > 1,
            use_thumbnail=config.use_thumbnail,
            max_dynamic_patch=max_num,
        ),
    )
    return ModelReader(checkpoint, encoder, TextCounter(tokenizer))
