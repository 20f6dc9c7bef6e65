"""Pictures and videos of samples: where they are expected, and which of the existing ones cannot be read."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from eval.core.sample import EnlargedImage, FrameImage, PackedImage, Sample
from internvl.data.storage.media import load_image
from internvl.data.video import read_video_info
from internvl.errors import DataError


def list_media(sample: Sample) -> Iterator[tuple[str, Path]]:
    """(`image` or `video`, path) of every file of a sample. A video may be a folder of frames."""
    for image in sample.images:
        if isinstance(image, FrameImage):
            yield "video", image.path
        elif isinstance(image, Path | EnlargedImage):
            yield "image", image.path if isinstance(image, EnlargedImage) else image
    for video in sample.videos:
        yield "video", Path(video.path)


def is_there(kind: str, path: Path) -> bool:
    """Whether a file of `list_media` exists."""
    # Unlike the methods of Path, these take names that no file can have.
    return os.path.isfile(path) or (kind == "video" and os.path.isdir(path))


def find_broken_media(samples: Iterable[Sample]) -> Iterator[str]:
    """Why existing pictures and videos cannot be read, each named once.

    Pictures are decoded whole; of videos only the headers are read, since decoding would take hours.
    """
    seen: set[Path] = set()
    for sample in samples:
        readers: list[Callable[[], object]] = [image.open for image in sample.images if isinstance(image, PackedImage)]
        for kind, path in list_media(sample):
            if path not in seen and is_there(kind, path):
                seen.add(path)
                readers.append(partial(load_image if kind == "image" else read_video_info, path))
        for read in readers:
            try:
                read()
            except DataError as error:
                yield str(error)
