"""What a training record shows: the pictures of its questions, their sizes, their tiles.

    record --place_record--> questions, pictures --read_size--> tiles per picture --load_tiles--> (tiles, 3, S, S)
             draws frames                          headers                            decodes

Which frames of a video are shown is drawn from the document's generator and the video's header, so that counting
tokens decodes nothing.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from internvl.data.prompt import Picture, check_placeholders, list_frame_pictures, load_pictures, place_pictures
from internvl.data.records import Record
from internvl.data.storage.pixels import Alpha
from internvl.data.tiling import Tiling
from internvl.data.transform import TileTransform, allocate_tiles, build_transform, tiles_to_tensor
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip, check_sampling, find_clip, read_video_info, sample_frames
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.positions_scheme import ImageGrid


@dataclass(frozen=True)
class SizedPicture:
    """A picture and its (width, height) in pixels, from its header."""

    picture: Picture
    size: tuple[int, int]

    @property
    def grid(self) -> ImageGrid:
        """How it is cut into tiles."""
        return self.picture.choose_grid(self.size)

    @property
    def num_tiles(self) -> int:
        """Tiles that it is cut into."""
        return self.grid.num_tiles

    def check_decoded(self, image: Image.Image) -> None:
        """Raise DataError if a decoded picture has another size than its header, from which its tiles were counted."""
        if image.size != self.size:
            message = f"{self.picture.source} decodes to {image.size}, its header says {self.size}; replace the file"
            raise DataError(message, kind="image")


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """The options of a run that decide tiles. Wrong ones raise ConfigError."""

    image_size: int  # side of a tile in pixels
    dynamic_image_size: bool = False  # tile images; otherwise every image is one tile
    dynamic_max_patch: bool = False  # share the tile limit among the images of a multi-image record
    use_thumbnail: bool = False  # append a thumbnail tile to images of several tiles
    min_dynamic_patch: int = 1  # fewest tiles per image
    max_dynamic_patch: int = 12  # most tiles per image (thumbnail not counted)
    normalize_type: str = "imagenet"  # or `clip`, `siglip`
    pad2square: bool = False  # see `TileTransform`
    alpha: Alpha = "white"  # how transparent pictures are shown

    def __post_init__(self) -> None:
        if not 1 <= self.min_dynamic_patch <= self.max_dynamic_patch:
            limits = f"{self.min_dynamic_patch} and {self.max_dynamic_patch}"
            raise ConfigError(f"min_dynamic_patch and max_dynamic_patch are {limits}, expected 1 <= minimum <= maximum")
        _ = self._transforms  # built early, so that errors come early

    @cached_property
    def _transforms(self) -> dict[bool, TileTransform]:
        """Augmenting and plain transform, by `data_augment`."""
        return {
            augment: build_transform(
                self.image_size, normalize_type=self.normalize_type, pad2square=self.pad2square, augment=augment
            )
            for augment in (False, True)
        }

    def choose_tiling(self, record: Record, num_images: int) -> Tiling:
        """The tiling of a record's pictures, which may share the limit."""
        max_num = self.max_dynamic_patch if record.max_dynamic_patch is None else record.max_dynamic_patch
        max_num = max_num // num_images if self.dynamic_max_patch else max_num
        return Tiling(self.min_dynamic_patch, max_num, self.image_size, self.use_thumbnail)

    def load_tiles(
        self,
        pictures: Sequence[SizedPicture],
        rng: np.random.Generator,
        *,
        augment: bool,
        wanted: range,
        out: UInt8[Tensor, "room 3 size size"] | None = None,
    ) -> UInt8[Tensor, "tiles 3 size size"]:
        """Decode the wanted ones of all tiles; pictures without a wanted tile are not decoded.

        Args:
            rng: Draws JPEG qualities; every picture has a generator of its own, so that they do not depend on `wanted`.
            wanted: Consecutive numbers of tiles; those beyond the last one are ignored.
            out: Room for them, see `SampleEncoder.encode`.

        Raises:
            DataError: A picture cannot be decoded, or its header lies.
        """
        shares: list[tuple[SizedPicture, np.random.Generator, slice]] = []
        first = 0
        for sized, child in zip(pictures, rng.spawn(len(pictures)), strict=True):
            own = slice(max(wanted.start - first, 0), max(wanted.stop - first, 0))
            first += sized.num_tiles
            if own.start < min(own.stop, sized.num_tiles):
                shares.append((sized, child, own))
        num_tiles = sum(len(range(sized.num_tiles)[own]) for sized, _, own in shares)
        if out is None or len(out) < num_tiles:
            out = allocate_tiles(num_tiles, self.image_size, self.image_size)
        transform = self._transforms[augment]
        num_loaded = 0
        images = load_pictures([sized.picture for sized, *_ in shares], alpha=self.alpha)
        for (sized, child, own), image in zip(shares, images, strict=True):
            sized.check_decoded(image)
            # All tiles of a picture draw, so that a wanted one is the same whichever others are wanted.
            squares = transform.to_squares(sized.picture.split(image), child)[own]
            tiles_to_tensor(squares, out=out[num_loaded : num_loaded + len(squares)])
            num_loaded += len(squares)
        return out[:num_tiles]


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """The options of a run that decide which frames of a video are shown. Wrong ones raise ConfigError."""

    min_num_frame: int = 4  # a frame is one tile, unless the data set says otherwise
    max_num_frame: int = 20
    frame_sampling: str = "rand"  # which frames, see `sample_frames`

    def __post_init__(self) -> None:
        if not 1 <= self.min_num_frame <= self.max_num_frame:
            limits = f"{self.min_num_frame} and {self.max_num_frame}"
            raise ConfigError(f"min_num_frame and max_num_frame are {limits}, expected 1 <= minimum <= maximum")
        check_sampling(self.frame_sampling)

    def choose(self, video: VideoClip, rng: np.random.Generator) -> list[int]:
        """Draw the frames that a document shows. Raises DataError if the video cannot be read."""
        first, last = find_clip(video)
        numbers = sample_frames(
            last + 1 - first,
            method=self.frame_sampling,
            min_num=self.min_num_frame,
            max_num=self.max_num_frame,
            rng=rng,
            fps=read_video_info(video.path).fps,
            is_padded=not os.path.isdir(video.path),
        )
        return [first + number for number in numbers]


def place_record(
    record: Record, tiles: TileOptions, frames: FrameOptions, rng: np.random.Generator | None
) -> tuple[list[str], list[Picture]]:
    """The questions of a record with one `<image>` per image or frame, and these pictures in order.

    A single image, or a video, without placeholder stands in front of the first question; a list of images must be
    placed. Without a video `<video>` is text.

    Raises:
        DataError: Placeholders do not fit, or the video cannot be read.
    """
    questions = [text for role, text in record.turns if role == "user"]
    if len(record.image_paths) == 1 and not record.is_multi_image:
        questions = _open_with(IMAGE_PLACEHOLDER, questions)
    if record.video is not None:
        questions = _open_with(VIDEO_PLACEHOLDER, questions)
    check_placeholders(questions, len(record.image_paths), int(record.video is not None))
    empty = next((index for index, text in enumerate(questions) if not text), None)
    if empty is not None:
        message = f"turn {2 * empty} is an empty question, expected text or an image"
        raise DataError(message, kind="placeholder")
    is_tiled = tiles.dynamic_image_size if record.dynamic_image_size is None else record.dynamic_image_size
    tiling = tiles.choose_tiling(record, len(record.image_paths) or 1 if record.is_multi_image else 1)
    images = [Picture(path, tiling=tiling if is_tiled else None) for path in record.image_paths]
    if record.video is None:
        return place_pictures(questions, images)
    if rng is None:
        raise ValueError("a record with a video needs a generator; pass rng=")
    shown = frames.choose(record.video, rng)
    frame_tiling = tiles.choose_tiling(record, len(shown)) if record.dynamic_image_size else None
    return place_pictures(questions, images, [list_frame_pictures(record.video.path, shown, tiling=frame_tiling)])


def _open_with(placeholder: str, questions: list[str]) -> list[str]:
    if any(placeholder in question for question in questions):
        return questions
    return [f"{placeholder}\n{questions[0]}".strip(), *questions[1:]]
