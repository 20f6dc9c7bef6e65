"""Prompts: which picture stands where in the questions of a conversation, and how many tiles each becomes.

    questions with <image> and <video>   --place_pictures-->   questions with <image> only, and a Picture for each
    Picture                              --count_tiles----->   visual tokens per image, from the file's header
    Picture                              --load_pictures--->   RGB images, the frames of a video in one pass

Training, inference and the data builders all place pictures here. `ConversationTokenizer` in
internvl/model/conversation.py then makes the token ids; docs/decisions/prompt.md says why there are two files.
"""

import os
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

from internvl.data.storage.media import MediaPath, load_image, read_image_size
from internvl.data.storage.pixels import Alpha, picture_errors, to_rgb
from internvl.data.tiling import Tiling
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip, label_frames, list_frames, load_frames, read_video_info
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.positions_scheme import ImageGrid


@runtime_checkable
class StoredImage(Hashable, Protocol):
    """A picture that is opened when its features are needed; equal objects show the same."""

    def open(self) -> Image.Image:
        """Open the picture."""


ImageSource = MediaPath | Image.Image | StoredImage
VideoSource = MediaPath | VideoClip

_ONLY_IMAGES = re.compile(IMAGE_PLACEHOLDER)
_IMAGES_AND_VIDEOS = re.compile(f"{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER}")


@dataclass(frozen=True)
class Picture:
    """An image of a prompt, or a frame of a video."""

    source: ImageSource  # the image, or the video file
    frame: int | None = None  # number of the frame in the video file; None: an image
    tiling: Tiling | None = None  # how it is cut; None: it is one tile as it is
    place: int = 0  # of a frame among those of its video that are shown, from 1; 0: an image

    def read_size(self) -> tuple[int, int]:
        """Read (width, height) in pixels from a header, without decoding. Raises DataError if it cannot be read."""
        source = self.source
        if not isinstance(source, MediaPath):
            return (source if isinstance(source, Image.Image) else source.open()).size
        if self.frame is None:
            return read_image_size(source)
        info = read_video_info(source)
        return info.width, info.height

    def count_tiles(self) -> int:
        """Count the tiles from the size alone; a single tile is not opened. Raises DataError as `read_size` does."""
        return self.read_grid().num_tiles

    def read_grid(self) -> ImageGrid:
        """The grid of tiles, likewise."""
        if self.tiling is None or self.tiling.max_num == 1:
            return ImageGrid(1, 1, frame=self.place)
        return self.choose_grid(self.read_size())

    def choose_grid(self, size: tuple[int, int]) -> ImageGrid:
        """The grid of tiles of a picture of this (width, height)."""
        grid = ImageGrid(1, 1) if self.tiling is None else self.tiling.grid(*size)
        return grid._replace(frame=self.place)

    def split(self, image: Image.Image) -> list[Image.Image]:
        """Cut the decoded picture into its tiles."""
        return [image] if self.tiling is None else self.tiling.split(image)


def check_placeholders(questions: Sequence[str], num_images: int, num_videos: int = 0) -> None:
    """Raise DataError unless the user messages have one `<image>` per image and one `<video>` per video.

    Without videos `<video>` is text (it is a tag of web pages).
    """
    expected = {IMAGE_PLACEHOLDER: num_images} | ({VIDEO_PLACEHOLDER: num_videos} if num_videos else {})
    for placeholder, num_expected in expected.items():
        num_placeholders = sum(question.count(placeholder) for question in questions)
        if num_placeholders == num_expected:
            continue
        kind, several = placeholder.strip("<>"), f"the {len(questions)} questions of the conversation have"
        where = "the prompt has" if len(questions) == 1 else several
        raise DataError(
            f"{where} {num_placeholders} {placeholder} for {num_expected} {kind}s, expected one per {kind}; "
            f"change the text or the list of {kind}s",
            kind="placeholder",
        )


def list_frame_pictures(path: MediaPath, frames: Sequence[int], *, tiling: Tiling | None) -> list[Picture]:
    """List the pictures of some frames of a video file or of a folder (DataError if it cannot be read)."""
    if os.path.isdir(path):
        files = list_frames(path)
        return [Picture(files[frame], tiling=tiling, place=place) for place, frame in enumerate(frames, start=1)]
    return [Picture(path, frame=frame, tiling=tiling, place=place) for place, frame in enumerate(frames, start=1)]


def place_pictures(
    questions: Sequence[str], images: Sequence[Picture], videos: Sequence[Sequence[Picture]] = ()
) -> tuple[list[str], list[Picture]]:
    """Replace every `<video>` by its labelled frames, and list all pictures in the order of their `<image>`.

    The questions must have as many placeholders as there are pictures (`check_placeholders`).
    """
    following_images, following_videos = iter(images), iter(videos)
    pictures: list[Picture] = []

    def place(placeholder: re.Match[str]) -> str:
        if placeholder[0] == IMAGE_PLACEHOLDER:
            pictures.append(next(following_images))
            return IMAGE_PLACEHOLDER
        frames = next(following_videos)
        pictures.extend(frames)
        return label_frames(len(frames))

    pattern = _IMAGES_AND_VIDEOS if videos else _ONLY_IMAGES
    return [pattern.sub(place, question) for question in questions], pictures


def load_pictures(pictures: Sequence[Picture], *, alpha: Alpha = "white") -> Iterator[Image.Image]:
    """Decode pictures to RGB, one in memory at a time; the frames of a video file are read in one pass.

    Raises DataError if a file or a picture in memory cannot be read.
    """
    frames_of: dict[MediaPath, list[int]] = {}
    for picture in pictures:
        if picture.frame is not None:
            assert isinstance(picture.source, MediaPath)
            frames_of.setdefault(picture.source, []).append(picture.frame)
    videos = {path: load_frames(path, frames, alpha=alpha) for path, frames in frames_of.items()}
    for picture in pictures:
        source = picture.source
        if isinstance(source, MediaPath):
            yield load_image(source, alpha=alpha) if picture.frame is None else next(videos[source])
        else:
            with picture_errors("in memory"):
                image = to_rgb(source if isinstance(source, Image.Image) else source.open(), alpha=alpha)
            yield image
