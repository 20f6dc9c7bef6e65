"""Training documents: one record becomes token ids, labels, tiles and strides.

    <s><|im_start|>system\n...<|im_end|>              text, masked
    <|im_start|>user\n  <img> ctx ctx ... </img>      text, image (T * tiles visual tokens), masked
    \nWhat is shown?<|im_end|>                        text, masked
    <|im_start|>assistant\n                           text, masked
    A cat.<|im_end|>                                  answer, SUPERVISED with its closing token

What is trained on follows from how the pieces are built (internvl/model/conversation.py), not from searching the ids.
A document's pictures are placed and measured in visuals.py, its strides are drawn in strides.py.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from internvl.data.prompt import Picture, load_pictures
from internvl.data.records import Record
from internvl.data.strides import StrideOptions
from internvl.data.visuals import FrameOptions, SizedPicture, TileOptions, place_record
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.conversation import ConversationTokenizer, Piece, TextTokenizer

_NUM_GENERATORS = 3  # that a document's own one is split into: strides, images, choice of frames


def document_generator(seed: int, *, epoch: int, source: str, row: int, repeat: int) -> np.random.Generator:
    """The random generator of one document: the same arguments give the same draws, on any rank and in any order."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, zlib.crc32(source.encode()), row, repeat]))


@dataclass(frozen=True, eq=False)
class EncodedDocument:
    """A document ready to be joined into a row."""

    input_ids: Int64[Tensor, " tokens"]
    labels: Int64[Tensor, " tokens"]  # the ids of supervised tokens, -100 elsewhere
    pixel_values: UInt8[Tensor, "tiles 3 size size"]  # of all images and frames in order (or those asked for)
    image_flags: Int64[Tensor, " tiles"]  # 1 for every tile in `pixel_values`
    image_strides: Int64[Tensor, " images"]  # per image or frame, in units of 1/65536 positions
    image_grids: Int64[Tensor, "images 4"]  # likewise, the numbers of an `ImageGrid`
    tiles_per_image: tuple[int, ...]  # likewise


class Layout(NamedTuple):
    """A document before its tiles are decoded; `num_tokens` counts all visual tokens, not one per image as `pieces`."""

    pieces: list[Piece]
    pictures: list[SizedPicture]
    num_tokens: int

    @property
    def tiles_per_image(self) -> tuple[int, ...]:
        """Tiles of every image or frame."""
        return tuple(picture.num_tiles for picture in self.pictures)


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The options of a run that decide token ids and labels.

    Raises:
        ConfigError: An option is wrong, or a token is missing in the tokenizer.
    """

    tokenizer: TextTokenizer  # knows the image tokens and the template's markers
    conversation_name: str  # prompt template
    num_image_token: int  # T, visual tokens per tile
    max_seq_length: int = 2048  # longest document in tokens
    # Of a longer one, drop trailing question-answer pairs with their images (not the first pair), or refuse it.
    truncation: Literal["drop_turns", "error"] = "drop_turns"

    def __post_init__(self) -> None:
        if self.truncation not in ("drop_turns", "error"):
            raise ConfigError(f"truncation is {self.truncation!r}, expected 'drop_turns' or 'error'")
        for token in (*self.conversation.markers, self.conversation.template.stop_token):
            self.conversation.find_special_token(token)

    @cached_property
    def conversation(self) -> ConversationTokenizer:
        """What makes token ids. Each process has its own, since remembered texts are not worth sending to workers."""
        return ConversationTokenizer(self.tokenizer, self.conversation_name)

    def __getstate__(self) -> dict[str, object]:
        return {option.name: getattr(self, option.name) for option in fields(self)}

    def lay_out(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        pictures: Sequence[Picture],
        *,
        system_message: str | None = None,
    ) -> Layout:
        """Lay out the opening and as many question-answer pairs as fit.

        Raises:
            DataError: The document is too long, or the header of a picture cannot be read.
        """
        following = iter(pictures)
        pieces = [self.conversation.encode_opening(system_message)]
        shown: list[SizedPicture] = []
        num_tokens = self._count(pieces, shown)
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            pair = [self.conversation.encode_turn("user", question), *self.conversation.encode_answer(answer)]
            # Pair by pair, so that headers of pictures in pairs that are dropped are not all read.
            asked = [next(following) for _ in range(question.count(IMAGE_PLACEHOLDER))]
            pair_shown = [SizedPicture(picture, picture.read_size()) for picture in asked]
            num_tokens_before, num_tokens = num_tokens, num_tokens + self._count(pair, pair_shown)
            if num_tokens > self.max_seq_length:
                if number == 0 or self.truncation == "error":
                    raise self._refuse_length(num_tokens, is_first=number == 0)
                return Layout(pieces, shown, num_tokens_before)
            pieces += pair
            shown += pair_shown
        return Layout(pieces, shown, num_tokens)

    def _count(self, pieces: Sequence[Piece], pictures: Sequence[SizedPicture]) -> int:
        num_visual = sum(self.num_image_token * picture.num_tiles - 1 for picture in pictures)
        return sum(len(piece.ids) for piece in pieces) + num_visual

    def _refuse_length(self, num_tokens: int, *, is_first: bool) -> DataError:
        part = "the first question and answer need" if is_first else "its first turns need"
        other = "" if is_first else ", or drop trailing turns (truncation drop_turns)"
        return DataError(
            f"{part} {num_tokens} tokens, expected at most max_seq_length {self.max_seq_length}; raise it, "
            f"lower max_dynamic_patch or max_num_frame{other}",
            kind="length",
        )


@dataclass(frozen=True, kw_only=True)
class SampleEncoder:
    """Turns records into documents."""

    text: TextOptions
    tiles: TileOptions
    frames: FrameOptions = field(default_factory=FrameOptions)
    strides: StrideOptions = field(default_factory=StrideOptions)

    def describe(self) -> dict[str, str]:
        """All options by name but the tokenizer: equal descriptions make equal documents of a record."""
        parts = (self.text, self.tiles, self.frames, self.strides)
        options = {option.name: str(getattr(part, option.name)) for part in parts for option in fields(part)}
        return {name: value for name, value in options.items() if name != "tokenizer"}

    def measure(self, record: Record, rng: np.random.Generator | None = None) -> tuple[int, int]:
        """(tokens, tiles) of the record's document, from text and the headers of images and videos alone.

        A record with a video needs `rng`, a new generator of the document as for `encode`.

        Raises:
            DataError: The record cannot become a document.
        """
        frame_rng = None if record.video is None or rng is None else rng.spawn(_NUM_GENERATORS)[-1]
        layout = self._lay_out(record, frame_rng)
        return layout.num_tokens, sum(layout.tiles_per_image)

    def encode(
        self,
        record: Record,
        rng: np.random.Generator,
        *,
        tiles: range | None = None,
        out: UInt8[Tensor, "room 3 size size"] | None = None,
    ) -> EncodedDocument:
        """Make the document.

        Args:
            rng: The document's own generator (`document_generator`); draws strides, JPEG qualities and frames.
            tiles: Consecutive tiles to load (numbers beyond the document's last are ignored); images that have none
                of them are not decoded. None: all. Everything but `pixel_values` and `image_flags` is the same.
            out: Room for `pixel_values`, which become a view of its beginning. Where it is too small, or None, they
                get memory of their own.

        Raises:
            DataError: The record cannot become a document, or an image cannot be decoded.
        """
        stride_rng, image_rng, frame_rng = rng.spawn(_NUM_GENERATORS)
        layout = self._lay_out(record, frame_rng)
        tiles_per_image, num_image_token = layout.tiles_per_image, self.text.num_image_token
        input_ids, labels = self.text.conversation.join(layout.pieces, tiles_per_image, num_image_token=num_image_token)
        wanted = range(sum(tiles_per_image)) if tiles is None else tiles
        with _naming(record):
            pixel_values = self.tiles.load_tiles(
                layout.pictures, image_rng, augment=record.data_augment, wanted=wanted, out=out
            )
        return EncodedDocument(
            input_ids=input_ids,
            labels=labels,
            pixel_values=pixel_values,
            image_flags=torch.ones(len(pixel_values), dtype=torch.int64),
            image_strides=self.strides.draw(len(layout.pictures), stride_rng, num_image_token=num_image_token),
            image_grids=torch.tensor([sized.grid for sized in layout.pictures], dtype=torch.int64).reshape(-1, 4),
            tiles_per_image=tiles_per_image,
        )

    def check_pictures(self, record: Record, rng: np.random.Generator) -> None:
        """Decode all that the document shows, one picture at a time, and keep nothing.

        Raises:
            DataError: An image or a frame cannot be decoded, or has another size than its header says.
        """
        pictures = self._lay_out(record, rng.spawn(_NUM_GENERATORS)[-1]).pictures
        with _naming(record):
            images = load_pictures([sized.picture for sized in pictures])
            for sized, image in zip(pictures, images, strict=True):
                sized.check_decoded(image)

    def _lay_out(self, record: Record, rng: np.random.Generator | None) -> Layout:
        with _naming(record):
            questions, pictures = place_record(record, self.tiles, self.frames, rng)
            answers = [text for role, text in record.turns if role == "assistant"]
            return self.text.lay_out(questions, answers, pictures, system_message=record.system_message)


@contextmanager
def _naming(record: Record) -> Iterator[None]:
    """Errors of the block name the record."""
    try:
        yield
    except DataError as error:
        raise error.at(record.source, record.row) from None
