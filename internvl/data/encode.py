"""One record to one training document: token ids, labels, tiles and strides.

A document is laid out as pieces, and what is trained on follows from how it is built, not from searching the ids:

    <s><|im_start|>system\\n...<|im_end|>              text, masked
    <|im_start|>user\\n  <img> ctx ctx ... </img>      text, image (T * tiles visual tokens), masked
    \\nWhat is shown?<|im_end|>                        text, masked
    <|im_start|>assistant\\n                           text, masked
    A cat.<|im_end|>                                  answer, SUPERVISED with its closing token

Pieces meet at special tokens, where a tokenizer splits anyway, so the joined ids are those of the rendered text. (The
only other seam is behind `assistant\\n`; there the ids are the ones that a prompt plus a generated answer has.)
Image pieces are made as ids and never pass through the tokenizer.

A video is a series of images with labels: `<video>` becomes `Frame1: <image>`, `Frame2: <image>`, ... line by line.
Which frames is drawn from the document's generator and the video's header, so that counting tokens decodes nothing.
"""

import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from internvl.data.records import Record, Role
from internvl.data.storage.media import MediaPath, load_image, read_image_size
from internvl.data.tiling import count_tiles, split_into_tiles
from internvl.data.transform import TileTransform, allocate_tiles, build_transform
from internvl.data.video import (
    VIDEO_PLACEHOLDER,
    check_sampling,
    find_clip,
    label_frames,
    list_frames,
    load_frames,
    read_video_info,
    sample_frames,
)
from internvl.errors import ConfigError, DataError
from internvl.model.constants import (
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
)
from internvl.model.conversation import get_conversation, neutralise_special_tokens
from internvl.model.v2pe import RANDOM_STRIDES, check_stride, stride_to_units

_MAX_REMEMBERED_TEXT = 256  # characters
_NUM_GENERATORS = 3  # that a document's own one is split into: strides, images, choice of frames
_PLACEHOLDERS = re.compile(f"{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER}")


def document_generator(seed: int, *, epoch: int, source: str, row: int, repeat: int) -> np.random.Generator:
    """The random generator of one document: the same arguments give the same draws, on any rank and in any order."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, zlib.crc32(source.encode()), row, repeat]))


@dataclass(frozen=True, eq=False)
class EncodedDocument:
    """A document ready to be joined into a row.

    Attributes:
        input_ids: Token ids.
        labels: The ids of supervised tokens, -100 elsewhere.
        pixel_values: Tiles of all images and frames in order (or those asked for).
        image_flags: 1 for every tile in `pixel_values`.
        image_strides: Stride per image (or frame) in units of 1/65536 positions.
        tiles_per_image: Tiles of every image (or frame).
    """

    input_ids: Int64[Tensor, " tokens"]
    labels: Int64[Tensor, " tokens"]
    pixel_values: Float[Tensor, "tiles 3 size size"]
    image_flags: Int64[Tensor, " tiles"]
    image_strides: Int64[Tensor, " images"]
    tiles_per_image: tuple[int, ...]


@dataclass(frozen=True)
class _TextPiece:
    ids: list[int]
    is_supervised: bool = False


@dataclass(frozen=True)
class _Source:
    """Where an image comes from.

    Attributes:
        path: Image or video: a file, a member of an archive, or a URL.
        frame: Frame of the video file; None: an image file.
        max_num: Tile limit; None: the whole image is one tile.
    """

    path: MediaPath
    frame: int | None = None
    max_num: int | None = None


@dataclass(frozen=True)
class _ImagePiece:
    source: _Source
    size: tuple[int, int]
    num_tiles: int


@dataclass(frozen=True)
class _Layout:
    pieces: tuple[_TextPiece | _ImagePiece, ...]
    num_tokens: int

    @property
    def images(self) -> list[_ImagePiece]:
        return [piece for piece in self.pieces if isinstance(piece, _ImagePiece)]

    @property
    def num_tiles(self) -> int:
        return sum(image.num_tiles for image in self.images)


@dataclass(frozen=True, kw_only=True)
class SampleEncoder:
    """Turns records into documents; the options of a run that decide what a document looks like.

    Attributes:
        tokenizer: Any transformers tokenizer that knows the image tokens and the template's markers.
        conversation_name: Prompt template.
        image_size: Side of a tile in pixels.
        num_image_token: T, visual tokens per tile.
        max_seq_length: Longest document in tokens.
        truncation: What happens to a longer one: `drop_turns` drops trailing question-answer pairs, whole, with their
            images (a first pair that is too long is an error); `error` makes it an error.
        dynamic_image_size: Tile images; otherwise every image is one tile.
        dynamic_max_patch: Share the tile limit among the images of a multi-image record.
        use_thumbnail: Append a thumbnail tile to images of several tiles.
        min_dynamic_patch: Fewest tiles per image.
        max_dynamic_patch: Most tiles per image (thumbnail not counted).
        min_num_frame: Fewest frames of a video. A frame is one tile, unless the data set says otherwise.
        max_num_frame: Most frames of a video.
        frame_sampling: Which frames, see `sample_frames`.
        normalize_type: `imagenet`, `clip` or `siglip`.
        pad2square: See `TileTransform`.
        rope_pos_id_version: `default` (stride T), `v2pe_fix` or `v2pe_rnd`.
        rope_pos_id_stride: The stride of `v2pe_fix`.
        random_strides: What `v2pe_rnd` draws from, uniformly.
        rope_pos_id_rnd_scope: Draw a stride for every image, or one for all images of a document.

    Raises:
        ConfigError: A token is missing in the tokenizer, or an option is wrong.
    """

    tokenizer: Any
    conversation_name: str
    image_size: int
    num_image_token: int
    max_seq_length: int = 2048
    truncation: Literal["drop_turns", "error"] = "drop_turns"
    dynamic_image_size: bool = False
    dynamic_max_patch: bool = False
    use_thumbnail: bool = False
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    min_num_frame: int = 4
    max_num_frame: int = 20
    frame_sampling: str = "rand"
    normalize_type: str = "imagenet"
    pad2square: bool = False
    rope_pos_id_version: str = "default"
    rope_pos_id_stride: int | float | Fraction | None = None
    random_strides: Sequence[int | float | Fraction] = RANDOM_STRIDES
    rope_pos_id_rnd_scope: Literal["image", "sample"] = "image"

    def __post_init__(self) -> None:
        check_stride(self.rope_pos_id_version, self.rope_pos_id_stride)
        if self.rope_pos_id_rnd_scope not in ("image", "sample"):
            raise ConfigError(f"rope_pos_id_rnd_scope is {self.rope_pos_id_rnd_scope!r}, expected 'image' or 'sample'")
        if self.truncation not in ("drop_turns", "error"):
            raise ConfigError(f"truncation is {self.truncation!r}, expected 'drop_turns' or 'error'")
        if not 1 <= self.min_dynamic_patch <= self.max_dynamic_patch:
            limits = f"{self.min_dynamic_patch} and {self.max_dynamic_patch}"
            raise ConfigError(f"min_dynamic_patch and max_dynamic_patch are {limits}, expected 1 <= minimum <= maximum")
        if not 1 <= self.min_num_frame <= self.max_num_frame:
            limits = f"{self.min_num_frame} and {self.max_num_frame}"
            raise ConfigError(f"min_num_frame and max_num_frame are {limits}, expected 1 <= minimum <= maximum")
        check_sampling(self.frame_sampling)
        _ = self._image_ids, self._stride_units, self._transforms  # built early, so that errors come early

    def measure(self, record: Record, rng: np.random.Generator | None = None) -> tuple[int, int]:
        """(tokens, tiles) of the record's document, from text and the headers of images and videos alone.

        Args:
            record: The record.
            rng: The document's own generator, made anew, as for `encode`; records without a video need none.

        Raises:
            DataError: The record cannot become a document.
        """
        frame_rng = None if record.video is None or rng is None else rng.spawn(_NUM_GENERATORS)[-1]
        layout = self._lay_out(record, frame_rng)
        return layout.num_tokens, layout.num_tiles

    def encode(
        self,
        record: Record,
        rng: np.random.Generator,
        *,
        tiles: range | None = None,
        out: Float[Tensor, "room 3 size size"] | None = None,
    ) -> EncodedDocument:
        """Make the document.

        Args:
            record: The record.
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
        input_ids, labels = self._join(layout)
        images = layout.images
        wanted = range(layout.num_tiles) if tiles is None else tiles
        pixel_values = self._load_tiles(record, images, image_rng, wanted=wanted, out=out)
        return EncodedDocument(
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            pixel_values=pixel_values,
            image_flags=torch.ones(len(pixel_values), dtype=torch.int64),
            image_strides=torch.from_numpy(self._draw_strides(len(images), stride_rng)),
            tiles_per_image=tuple(image.num_tiles for image in images),
        )

    def check_pictures(self, record: Record, rng: np.random.Generator) -> None:
        """Decode all that the document shows, one picture at a time, and keep nothing.

        Args:
            record: The record.
            rng: The document's own generator, made anew, as for `encode`.

        Raises:
            DataError: An image or a frame cannot be decoded, or has another size than its header says.
        """
        images = self._lay_out(record, rng.spawn(_NUM_GENERATORS)[-1]).images
        pictures = _load_pictures(record, [image.source for image in images])
        for image, picture in zip(images, pictures, strict=True):
            _check_decoded(record, image, picture)

    # Text -----------------------------------------------------------------------------------------------------------

    def _lay_out(self, record: Record, rng: np.random.Generator | None) -> _Layout:
        try:
            turns, sources = self._place_visuals(record, rng)
            return self._lay_out_pairs(turns, sources, record.system_message)
        except DataError as error:
            raise error.at(record.source, record.row) from None

    def _lay_out_pairs(
        self, turns: Sequence[tuple[Role, str]], sources: Sequence[_Source], system_message: str | None
    ) -> _Layout:
        """Pieces of the opening and of as many question-answer pairs as fit."""
        following = iter(sources)
        pieces: list[_TextPiece | _ImagePiece] = [_TextPiece(self._opening_ids(system_message))]
        num_tokens = self._count(pieces)
        for start in range(0, len(turns), 2):
            pair = [
                piece for role, text in turns[start : start + 2] for piece in self._lay_out_turn(role, text, following)
            ]
            num_pair_tokens = self._count(pair)
            if num_tokens + num_pair_tokens > self.max_seq_length:
                if start == 0 or self.truncation == "error":
                    raise self._refuse_length(num_tokens + num_pair_tokens, is_first=start == 0)
                break
            pieces += pair
            num_tokens += num_pair_tokens
        return _Layout(tuple(pieces), num_tokens)

    def _refuse_length(self, num_tokens: int, *, is_first: bool) -> DataError:
        part = "the first question and answer need" if is_first else "its first turns need"
        other = "" if is_first else ", or drop trailing turns (truncation drop_turns)"
        return DataError(
            f"{part} {num_tokens} tokens, expected at most max_seq_length {self.max_seq_length}; raise it, "
            f"lower max_dynamic_patch or max_num_frame{other}",
            kind="length",
        )

    def _lay_out_turn(self, role: Role, text: str, sources: Iterator[_Source]) -> Iterator[_TextPiece | _ImagePiece]:
        conversation = self._conversation
        closing, rest = conversation.stop_token, conversation.separator[len(conversation.stop_token) :]
        text = neutralise_special_tokens(text)
        if role == "assistant":
            yield _TextPiece(self._assistant_prefix_ids)
            yield _TextPiece(self._answer_ids(text + closing), is_supervised=True)
        else:
            first, *others = (conversation.user_prefix + text).split(IMAGE_PLACEHOLDER)
            yield _TextPiece(self._tokenize(first))
            for other in others:
                yield self._measure_image(next(sources))
                yield _TextPiece(self._tokenize(other))
            yield _TextPiece(self._tokenize(closing))
        if rest:
            yield _TextPiece(self._tokenize(rest))

    def _opening_ids(self, system_message: str | None) -> list[int]:
        if system_message is None:
            return self._default_opening_ids
        return self._bos_ids + self._tokenize(
            self._conversation.render([], system_message=neutralise_special_tokens(system_message))
        )

    def _answer_ids(self, text: str) -> list[int]:
        """Ids of an answer behind the role string; where both would merge, the ids that generation would give."""
        prefix = self._assistant_prefix_ids
        whole = self._tokenize(self._conversation.assistant_prefix + text)
        return whole[len(prefix) :] if whole[: len(prefix)] == prefix else self._tokenize(text)

    def _tokenize(self, text: str) -> list[int]:
        if len(text) <= _MAX_REMEMBERED_TEXT:
            return list(self._remembered_ids(text))
        return _tokenize(self.tokenizer, text)

    @cached_property
    def _remembered_ids(self) -> Callable[[str], list[int]]:
        """Ids of short texts: role strings, stock questions and answers come again and again."""
        return lru_cache(maxsize=2**14)(partial(_tokenize, self.tokenizer))

    def __getstate__(self) -> dict[str, Any]:
        """The options alone; a worker process makes the rest anew."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    def _count(self, pieces: Sequence[_TextPiece | _ImagePiece]) -> int:
        return sum(
            len(piece.ids) if isinstance(piece, _TextPiece) else piece.num_tiles * self.num_image_token + 2
            for piece in pieces
        )

    def _join(self, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels) as int64 arrays."""
        input_ids = np.empty(layout.num_tokens, dtype=np.int64)
        labels = np.full(layout.num_tokens, IGNORE_INDEX, dtype=np.int64)
        stop = 0
        for piece in layout.pieces:
            start, stop = stop, stop + self._count([piece])
            if isinstance(piece, _ImagePiece):
                img_start, img_context, img_end = self._image_ids
                input_ids[start:stop] = img_context
                input_ids[start], input_ids[stop - 1] = img_start, img_end
                continue
            input_ids[start:stop] = piece.ids
            if piece.is_supervised:
                labels[start:stop] = piece.ids
        return input_ids, labels

    # Images ---------------------------------------------------------------------------------------------------------

    def _place_visuals(
        self, record: Record, rng: np.random.Generator | None
    ) -> tuple[list[tuple[Role, str]], list[_Source]]:
        """The turns with one `<image>` per image or frame, and where each of them comes from."""
        turns = _place_placeholders(record)
        if record.video is None:
            return turns, [self._image_source(path, record) for path in record.image_paths]
        if rng is None:
            raise ValueError("a record with a video needs a generator; pass rng=")
        frames = self._choose_frames(record, rng)
        images = (self._image_source(path, record) for path in record.image_paths)
        questions = "\n".join(text for role, text in turns if role == "user")
        sources: list[_Source] = []
        for placeholder in _PLACEHOLDERS.findall(questions):
            sources += frames if placeholder == VIDEO_PLACEHOLDER else [next(images)]
        labels = label_frames(len(frames))
        labelled = [(role, text.replace(VIDEO_PLACEHOLDER, labels) if role == "user" else text) for role, text in turns]
        return labelled, sources

    def _image_source(self, path: MediaPath, record: Record) -> _Source:
        is_tiled = self.dynamic_image_size if record.dynamic_image_size is None else record.dynamic_image_size
        max_num = self._tile_limit(record, len(record.image_paths) if record.is_multi_image else 1)
        return _Source(path, max_num=max_num if is_tiled else None)

    def _choose_frames(self, record: Record, rng: np.random.Generator) -> list[_Source]:
        """The frames that the document shows of its video."""
        assert record.video is not None
        path = record.video.path
        is_folder = os.path.isdir(path)
        info = read_video_info(path)
        first, last = find_clip(record.video)
        numbers = sample_frames(
            last + 1 - first,
            method=self.frame_sampling,
            min_num=self.min_num_frame,
            max_num=self.max_num_frame,
            rng=rng,
            fps=info.fps,
            is_padded=not is_folder,
        )
        max_num = self._tile_limit(record, len(numbers)) if record.dynamic_image_size else None
        if is_folder:
            files = list_frames(path)
            return [_Source(files[first + number], max_num=max_num) for number in numbers]
        return [_Source(path, frame=first + number, max_num=max_num) for number in numbers]

    def _tile_limit(self, record: Record, num_images: int) -> int:
        max_num = self.max_dynamic_patch if record.max_dynamic_patch is None else record.max_dynamic_patch
        return max_num // num_images if self.dynamic_max_patch else max_num

    def _measure_image(self, source: _Source) -> _ImagePiece:
        if source.frame is None:
            size = read_image_size(source.path)
        else:
            info = read_video_info(source.path)
            size = info.width, info.height
        num_tiles = 1 if source.max_num is None else count_tiles(*size, **self._tiling(source.max_num))
        return _ImagePiece(source, size, num_tiles)

    def _tiling(self, max_num: int) -> dict[str, Any]:
        return {
            "min_num": self.min_dynamic_patch,
            "max_num": max_num,
            "image_size": self.image_size,
            "use_thumbnail": self.use_thumbnail,
        }

    def _load_tiles(
        self,
        record: Record,
        images: Sequence[_ImagePiece],
        rng: np.random.Generator,
        *,
        wanted: range,
        out: Tensor | None,
    ) -> Tensor:
        """Wanted tiles, (tiles, 3, S, S) float32; every image has a generator of its own."""
        shares: list[tuple[_ImagePiece, np.random.Generator, slice]] = []
        first = 0
        for piece, child in zip(images, rng.spawn(len(images)), strict=True):
            own = slice(max(wanted.start - first, 0), max(wanted.stop - first, 0))
            first += piece.num_tiles
            if own.start < min(own.stop, piece.num_tiles):
                shares.append((piece, child, own))
        num_tiles = sum(len(range(piece.num_tiles)[own]) for piece, _, own in shares)
        if out is None or len(out) < num_tiles:
            out = allocate_tiles(num_tiles, self.image_size, self.image_size)
        transform = self._transforms[record.data_augment]
        num_loaded = 0
        pictures = _load_pictures(record, [piece.source for piece, *_ in shares])
        for (piece, child, own), picture in zip(shares, pictures, strict=True):
            squares = self._split(record, piece, picture, transform, child)[own]
            transform.to_tensor(squares, out=out[num_loaded : num_loaded + len(squares)])
            num_loaded += len(squares)
        return out[:num_tiles]

    def _split(
        self,
        record: Record,
        piece: _ImagePiece,
        picture: Image.Image,
        transform: TileTransform,
        rng: np.random.Generator,
    ) -> list[Image.Image]:
        """All tiles of one image."""
        source = piece.source
        _check_decoded(record, piece, picture)
        tiles = [picture] if source.max_num is None else split_into_tiles(picture, **self._tiling(source.max_num))
        return transform.to_squares(tiles, rng)

    def _draw_strides(self, num_images: int, rng: np.random.Generator) -> np.ndarray:
        """(images,) int64 strides in units of 1/65536."""
        if self.rope_pos_id_rnd_scope == "sample":
            return np.full(num_images, rng.choice(self._stride_units), dtype=np.int64)
        return rng.choice(self._stride_units, size=num_images)

    # What follows from the options ----------------------------------------------------------------------------------

    @cached_property
    def _conversation(self) -> Any:
        return get_conversation(self.conversation_name)

    @cached_property
    def _stride_units(self) -> np.ndarray:
        """The strides to draw from; a single one unless they are random."""
        strides: Sequence[int | float | Fraction] = (self.num_image_token,)
        if self.rope_pos_id_version == "v2pe_fix" and self.rope_pos_id_stride is not None:
            strides = (self.rope_pos_id_stride,)
        elif self.rope_pos_id_version == "v2pe_rnd":
            strides = self.random_strides
        if not strides:
            raise ConfigError("random_strides is empty, expected at least one stride")
        return np.array([stride_to_units(stride) for stride in strides], dtype=np.int64)

    @cached_property
    def _transforms(self) -> dict[bool, TileTransform]:
        """Augmenting and plain transform, by `data_augment`."""
        return {
            augment: build_transform(
                self.image_size, normalize_type=self.normalize_type, pad2square=self.pad2square, augment=augment
            )
            for augment in (False, True)
        }

    @cached_property
    def _image_ids(self) -> tuple[int, int, int]:
        """Ids of <img>, <IMG_CONTEXT> and </img>."""
        tokens = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        ids = [self._tokenize(token) for token in (*tokens, self._conversation.stop_token)]
        for token, token_ids in zip((*tokens, self._conversation.stop_token), ids, strict=True):
            if len(token_ids) != 1 or token_ids[0] == self.tokenizer.unk_token_id:
                raise ConfigError(
                    f"the tokenizer splits {token} into {len(token_ids)} tokens, expected one special token; add it to "
                    f"the tokenizer, or choose another template than {self.conversation_name!r}"
                )
        return ids[0][0], ids[1][0], ids[2][0]

    @cached_property
    def _bos_ids(self) -> list[int]:
        return self.tokenizer("")["input_ids"]

    @cached_property
    def _default_opening_ids(self) -> list[int]:
        return self._bos_ids + self._tokenize(self._conversation.render([]))

    @cached_property
    def _assistant_prefix_ids(self) -> list[int]:
        return self._tokenize(self._conversation.assistant_prefix)


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []


def _load_pictures(record: Record, sources: Sequence[_Source]) -> Iterator[Image.Image]:
    """Decoded images and frames in order; frames of the video in one pass."""
    frames = [source.frame for source in sources if source.frame is not None]
    video = iter(()) if record.video is None else load_frames(record.video.path, frames)
    for source in sources:
        yield load_image(source.path) if source.frame is None else next(video)


def _check_decoded(record: Record, piece: _ImagePiece, picture: Image.Image) -> None:
    if picture.size != piece.size:
        message = f"{piece.source.path} decodes to {picture.size}, its header says {piece.size}; replace the file"
        raise DataError(message, source=record.source, row=record.row, kind="image")


def _place_placeholders(record: Record) -> list[tuple[Role, str]]:
    """The turns with every image and the video placed: as many placeholders in the questions as there are.

    A single image, or a video, without placeholder stands in front of the first question; a list of images must be
    placed. Without a video `<video>` is text.
    """
    turns = list(record.turns)
    turns = _place(turns, IMAGE_PLACEHOLDER, len(record.image_paths), is_placed=record.is_multi_image)
    if record.video is not None:
        turns = _place(turns, VIDEO_PLACEHOLDER, 1, is_placed=False)
    empty = next((index for index, (_, text) in enumerate(turns) if not text), None)
    if empty is not None:
        raise DataError(f"turn {empty} is an empty question, expected text or an image", kind="placeholder")
    return turns


def _place(
    turns: list[tuple[Role, str]], placeholder: str, num_expected: int, *, is_placed: bool
) -> list[tuple[Role, str]]:
    """The turns with `num_expected` placeholders in the questions; a single one is put in front where it is missing."""
    num_placeholders = sum(text.count(placeholder) for role, text in turns if role == "user")
    if num_placeholders == 0 and num_expected == 1 and not is_placed:
        role, text = turns[0]
        return [(role, f"{placeholder}\n{text}".strip()), *turns[1:]]
    if num_placeholders != num_expected:
        kind = placeholder.strip("<>")
        raise DataError(
            f"the questions hold {num_placeholders} {placeholder} placeholders for {num_expected} {kind}s, expected as "
            f"many placeholders as {kind}s; correct the text or the '{kind}' entry",
            kind="placeholder",
        )
    return turns
