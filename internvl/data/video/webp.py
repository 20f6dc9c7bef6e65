"""Animated WebP: read by pillow, since FFmpeg does not decode it.

The file is a list of chunks (kind, size, content); every frame is a chunk ANMF that holds how long it is shown.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate

from PIL import Image

from internvl.data.storage.media import MediaPath, open_media
from internvl.data.storage.pixels import open_picture
from internvl.data.video.opening import video_errors

_CHUNK = struct.Struct("<4sI")
_HEADER_BYTES, _FRAME_BYTES, _DURATION = 12, 16, slice(12, 15)
_DEFAULT_MS = 100  # for frames that are shown for 0 ms, as browsers do


def is_webp(path: MediaPath) -> bool:
    """Whether a video is a WebP file, animated or not. Raises DataError if it cannot be opened."""
    with video_errors(path), open_media(path) as file:
        start = file.read(_HEADER_BYTES)
    return start[:4] == b"RIFF" and start[8:] == b"WEBP"


def read_frame_times(path: MediaPath) -> list[int]:
    """When each frame is shown, in milliseconds. Raises DataError if the file cannot be read."""
    durations = []
    with video_errors(path), open_media(path) as file:
        file.seek(_HEADER_BYTES)
        while len(head := file.read(_CHUNK.size)) == _CHUNK.size:
            kind, num_bytes = _CHUNK.unpack(head)
            following = file.tell() + num_bytes + num_bytes % 2
            if kind == b"ANMF":
                durations.append(int.from_bytes(file.read(_FRAME_BYTES)[_DURATION], "little") or _DEFAULT_MS)
            file.seek(following)
    return list(accumulate(durations[:-1], initial=0))


def read_webp_size(path: MediaPath) -> tuple[int, int]:
    """(width, height) in pixels. Raises DataError if the file cannot be read."""
    with video_errors(path), open_media(path) as file, open_picture(file) as image:
        return image.size


def decode_webp(path: MediaPath, indices: Sequence[int]) -> Iterator[Image.Image]:
    """The frames of the given numbers. Raises DataError if one is missing or damaged."""
    with video_errors(path), open_media(path) as file, open_picture(file) as image:
        for index in indices:
            image.seek(index)
            yield image.copy()
