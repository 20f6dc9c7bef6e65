"""Pictures of a page: thumbnails of what a question shows, first of all what its answer needs.

Thumbnails lie in a folder beside the page, from which a browser loads those that it shows, or inside the page as
`data:` addresses. Each is made once, however many questions show it.
"""

import base64
import hashlib
import io
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from eval.core.output import write_result
from eval.core.sample import Sample, SampleImage
from internvl.data.storage.media import MediaPath, load_image
from internvl.data.video import VideoClip, choose_frames, load_frames
from internvl.errors import InternVLError

logger = logging.getLogger(__name__)

THUMBNAIL_SIDE = 200
MAX_PICTURES = 6
FRAMES_PER_VIDEO = 4


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as a page shows it."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """A picture of a question."""

    caption: str  # which picture it is
    thumbnail: Thumbnail | None  # None where it cannot be shown
    is_needed: bool = False  # whether the answer is known to need it


class Thumbnails:
    """Makes thumbnails until they take `max_bytes` together (None: without limit).

    `folder` is made beside the page, which names its files as `FOLDER/NAME`; None: they lie inside the page.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int | None = None):
        self._folder, self._left = folder, max_bytes
        self._made: dict[Hashable, Thumbnail | None] = {}
        self._names: set[str] = set()

    def make(self, key: Hashable, load: Callable[[], Image.Image]) -> Thumbnail | None:
        """The thumbnail of a picture, None once the limit is reached.

        Equal keys are equal pictures. Raises what `load` raises, and EvalError if the file cannot be written.
        """
        if key not in self._made:
            self._made[key] = self._shrink(load())
        return self._made[key]

    def remove_others(self) -> None:
        """Remove from the folder what an earlier page left there."""
        for path in self._folder.glob("*.jpg") if self._folder else ():
            if path.name not in self._names:
                path.unlink()

    def _shrink(self, image: Image.Image) -> Thumbnail | None:
        small = image.copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=2.0)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=72, optimize=True)
        content = buffer.getvalue()
        if self._left is not None:
            if len(content) > self._left:
                return None
            self._left -= len(content)
        return Thumbnail(self._store(content), *small.size)

    def _store(self, content: bytes) -> str:
        if self._folder is None:
            return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
        name = f"{hashlib.sha256(content).hexdigest()[:16]}.jpg"
        if name not in self._names:
            self._names.add(name)
            write_result(self._folder / name, content)
        return f"{self._folder.name}/{name}"


def show_media(
    sample: Sample, depths: Sequence[float], thumbnails: Thumbnails, *, only_needed: bool = False
) -> list[Picture]:
    """What the answer needs, then some other pictures, evenly spread, then frames of the first video.

    Where needles are not known, the pictures nearest to their `depths` stand for them.
    """
    pictures = []
    for place, caption, is_needed in choose_pictures(sample, depths):
        if only_needed and not is_needed:
            continue
        source = sample.images[place]
        try:
            pictures.append(Picture(caption, thumbnails.make(source, partial(_open, source)), is_needed))
        except InternVLError as error:
            logger.warning("sample %s: %s", sample.id, error)
            pictures.append(Picture(f"{caption}, cannot be read", None, is_needed))
    for video in sample.videos[:1] if not only_needed else ():
        pictures += _show_video(video, sample.id, thumbnails)
    return pictures


def choose_pictures(sample: Sample, depths: Sequence[float]) -> Iterator[tuple[int, str, bool]]:
    """(place in `images`, caption, whether the answer needs it) of the pictures to show."""
    num = len(sample.images)
    needed = {place: "needle" for place in sample.needles if isinstance(place, int)}
    if not sample.needles and num > MAX_PICTURES:
        needed = {min(int(depth * num), num - 1): f"near depth {depth:.2f}" for depth in depths}
    others = [place for place in range(num) if place not in needed]
    num_others = min(len(others), max(1, MAX_PICTURES - len(needed)))
    for place in [*sorted(needed), *(others[index * len(others) // num_others] for index in range(num_others))]:
        number = f"{place + 1} of {num}" if num > 1 else ""
        yield place, ", ".join(filter(None, [needed.get(place), number])), place in needed


def _open(source: SampleImage) -> Image.Image:
    return load_image(source) if isinstance(source, Path) else source.open()


def _load_frame(path: MediaPath, number: int) -> Image.Image:
    return next(load_frames(path, [number]))


def _show_video(video: VideoClip, sample_id: str, thumbnails: Thumbnails) -> list[Picture]:
    try:
        numbers = choose_frames(video, num_frames=FRAMES_PER_VIDEO)
        numbers = numbers[:: max(1, len(numbers) // FRAMES_PER_VIDEO)][:FRAMES_PER_VIDEO]
        return [
            Picture(f"frame {number}", thumbnails.make((video.path, number), partial(_load_frame, video.path, number)))
            for number in dict.fromkeys(numbers)
        ]
    except InternVLError as error:
        logger.warning("sample %s: %s", sample_id, error)
        return [Picture("the video cannot be read", None)]
