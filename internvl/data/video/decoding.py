"""Video decoding: the pictures of chosen frames.

Decoding starts at the keyframe before a wanted frame, so few frames of a long video cost little; one frame is in memory
at a time.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from internvl.data.storage.cache import FileStamp
from internvl.data.storage.media import MediaPath, load_image
from internvl.data.storage.pixels import Alpha, to_rgb
from internvl.data.video.headers import PacketIndex, list_frames, read_index, read_video_info
from internvl.data.video.opening import open_video, refuse, stamp_video
from internvl.data.video.rotation import turn_upright
from internvl.data.video.webp import decode_webp, is_webp
from internvl.errors import DataError

_MISSING_SHARE = 0.02  # of the frames that a header announces; sound files lack as many at their end


def load_frames(path: MediaPath, indices: Sequence[int], *, alpha: Alpha = "white") -> Iterator[Image.Image]:
    """Decode frames, one picture (RGB, upright) per index.

    Any order is right; ascending indices are read in one pass. Equal neighbours are decoded once. Of the frames that
    a header announces a few may be missing at the end (2 %, at least one): the last one stands for them.

    Raises:
        DataError: The video cannot be read, is damaged, or ends too early.
    """
    num_frames = read_video_info(path).num_frames
    wrong = next((index for index in indices if not 0 <= index < num_frames), None)
    if wrong is not None:
        raise DataError(f"frame {wrong} of video {path} is wanted, expected 0 to {num_frames - 1}")
    distinct = [index for index, before in zip(indices, [None, *indices], strict=False) if index != before]
    if os.path.isdir(path):
        frames = list_frames(path)
        pictures: Iterator[Image.Image] = (load_image(frames[index], alpha=alpha) for index in distinct)
    else:
        decoded = _decode(stamp_video(path), distinct, num_frames)
        pictures = (to_rgb(picture, alpha=alpha) for picture in decoded)
    shown: int | None = None
    for index in indices:
        if index != shown:
            picture, shown = next(pictures), index
        yield picture


def _decode(stamp: FileStamp, indices: Sequence[int], num_frames: int) -> Iterator[Image.Image]:
    if is_webp(stamp.path):
        yield from decode_webp(stamp.path, indices)
        return
    index = read_index(stamp)
    if not len(index.times) or not len(index.key_times):
        yield from _decode_by_counting(stamp.path, indices, num_frames)
        return
    last = len(index.times) - 1
    wanted = [
        number if number <= last else _replace_missing(stamp.path, number, last, num_frames) for number in indices
    ]
    yield from _decode_by_time(stamp.path, index, [int(index.times[number]) for number in wanted])


def _decode_by_time(path: str, index: PacketIndex, times: Sequence[int]) -> Iterator[Image.Image]:
    """The frames shown at the given times, each from the keyframe before it on."""
    with open_video(path) as (container, stream):
        frames, current, key = container.decode(stream), None, 0
        for time in times:
            key_before, key = key, max(int(np.searchsorted(index.key_times, time, side="right")) - 1, 0)
            if key <= key_before and (current is None or _shown_at(current) <= time):
                current = _find_frame(frames, current, index, time)
            else:
                current = None
            for start in (key, 0):  # again from the beginning, if the seek led past the frame
                if current is None:
                    container.seek(int(index.key_seeks[start]), stream=stream)
                    frames = container.decode(stream)
                    current = _find_frame(frames, None, index, time)
            if current is None:
                refuse(path, f"the frame at {time * index.unit:.3f} seconds is missing or damaged")
            yield _convert(path, current)


def _find_frame(
    frames: Iterator[VideoFrame], current: VideoFrame | None, index: PacketIndex, time: int
) -> VideoFrame | None:
    """The frame that is shown at `time`; None if `frames` are already past it.

    A packet may show nothing by itself (alternate reference frames of VP8); the frame of the next one is taken then.
    """
    following = int(np.searchsorted(index.times, time)) + 1
    limit = int(index.times[min(following, len(index.times) - 1)])
    while current is None or _shown_at(current) < time:
        current = next((frame for frame in frames if frame.pts is not None), None)
        if current is None:
            return None
    return current if _shown_at(current) <= limit else None


def _shown_at(frame: VideoFrame) -> int:
    assert frame.pts is not None  # frames without a time were passed over
    return frame.pts


def _decode_by_counting(path: str, indices: Sequence[int], num_frames: int) -> Iterator[Image.Image]:
    """Frames of a file that does not say when they are shown: from its beginning on."""
    position = 0
    while position < len(indices):
        with open_video(path) as (container, stream):
            frames, current, number = container.decode(stream), None, -1
            while position < len(indices) and indices[position] >= number:
                while number < indices[position]:
                    following = next(frames, None)
                    if following is None:
                        if current is None:
                            refuse(path, "no frame can be decoded")
                        _replace_missing(path, indices[position], number, num_frames)
                        break
                    current, number = following, number + 1
                position += 1
                assert current is not None
                yield _convert(path, current)


def _replace_missing(path: str, wanted: int, last: int, num_frames: int) -> int:
    """The last frame that a file holds, in place of one that only its header knows."""
    if last < 0 or wanted >= num_frames or num_frames - 1 - last > max(1, _MISSING_SHARE * num_frames):
        refuse(path, f"frame {wanted} is missing: its header announces {num_frames} frames, it holds {last + 1}")
    return last


def _convert(path: str, frame: VideoFrame) -> Image.Image:
    if frame.is_corrupt:
        refuse(path, f"the frame at {frame.time} seconds is damaged")
    has_alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    # One thread: threads of the converter that a frame keeps do not exist in a process that is forked meanwhile, and
    # freeing the frame there would wait for them for ever.
    pixels = frame.reformat(format="rgba" if has_alpha else "rgb24", threads=1).to_ndarray()
    return Image.fromarray(np.ascontiguousarray(turn_upright(pixels, frame)))
