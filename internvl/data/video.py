"""Video files and folders of frames: how many frames they have, which of them are shown, what those show.

    read_video_info (header)  -->  sample_frames (numbers only)  -->  load_frames (seek, decode, picture)

    frames of a video     0 1 2 3 | 4 5 6 7 | 8 9 ...            three intervals of equal length
    rand                    ^           ^     ^                   any frame of each interval, the last one included
    middle                  ^         ^       ^                   the middle one (rounded down)

A video is a file that PyAV reads (mp4, webm, gif, ...; also in an archive or behind a URL) or a folder of pictures,
whose names are sorted with their numbers as numbers (`2.jpg` before `10.jpg`). Frames are counted from 0 in the order
in which they are shown, and are used as stored: neither rotation nor pixel aspect of the header is applied.

The number of frames comes from the header where it is given there, else from counting packets, which reads the file
but decodes nothing. Decoding starts at the keyframe before a wanted frame; one frame is in memory at a time.
"""

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import av
import numpy as np
from PIL import Image

from internvl.data.storage.cache import FileStamp
from internvl.data.storage.media import MediaPath, find_local, load_image, open_media, read_image_size, stamp_media
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

VIDEO_PLACEHOLDER = "<video>"  # stands for one video in a prompt or an annotation

_MISSING_SHARE = 0.02  # of the frames that a header announces; as many may be missing at the end of a sound file
_RATE_TOLERANCE = 0.01


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says.

    Attributes:
        num_frames: Number of frames.
        fps: Frames per second, on average; None for a folder.
        duration: Seconds; None for a folder.
        width: Pixels.
        height: Pixels.
        is_constant_rate: Frame i is shown at i / fps.
    """

    num_frames: int
    fps: float | None
    duration: float | None
    width: int
    height: int
    is_constant_rate: bool = True


@dataclass(frozen=True)
class VideoClip:
    """A video, or a part of it.

    Attributes:
        path: File, folder of frames, member of an archive, or URL.
        clip: First and last second; None: all of it.
        fps: Frames per second of a folder (needed with `clip`); files know their own.
        frames: The frames to show, instead of a sample; numbers from 0 on.
    """

    path: MediaPath
    clip: tuple[float, float] | None = None
    fps: float | None = None
    frames: tuple[int, ...] | None = None


def label_frames(num_frames: int) -> str:
    """What `<video>` becomes: `Frame1: <image>`, `Frame2: <image>`, ... on lines of their own.

    This is the form of the published MVBench evaluation. The public training code writes no space behind the colon
    and drops the line break between the last frame and the question; here training and inference use one form.
    """
    return "\n".join(f"Frame{number}: {IMAGE_PLACEHOLDER}" for number in range(1, num_frames + 1))


# Which frames -------------------------------------------------------------------------------------------------------


def check_sampling(method: str) -> float | None:
    """Check the name of a sampling method; the frames per second of `fpsX.Y`, else None.

    Raises:
        ConfigError: It is none of `rand`, `middle`, `uniform` and `fpsX.Y`.
    """
    if method in ("rand", "middle", "uniform"):
        return None
    match = re.fullmatch(r"fps(\d+\.?\d*|\.\d+)", method)
    rate = float(match[1]) if match else 0.0
    if rate <= 0:
        raise ConfigError(f"frame sampling is {method!r}, expected rand, middle, uniform, or fps and a rate: fps0.5")
    return rate


def sample_frames(
    num_frames: int,
    *,
    method: str,
    min_num: int,
    max_num: int,
    rng: np.random.Generator,
    fps: float | None = None,
    is_padded: bool = True,
) -> list[int]:
    """Choose the frames that a training document shows.

    The number of frames is drawn from `min_num` to `max_num`, both included (`fpsX.Y`: follows from the duration,
    within the two limits). Differences from the public code: `rand` can draw the last frame of an interval;
    `fpsX.Y` thins out a long video evenly instead of cutting off its end, and gives a very short one `min_num` frames
    instead of none.

    Args:
        num_frames: Frames to choose from, at least 1.
        method: `rand`, `middle`, `uniform` (`sample_segments`) or `fpsX.Y`.
        min_num: Fewest frames.
        max_num: Most frames.
        rng: Draws the number of frames, and the frames of `rand`.
        fps: Frames per second of the video, for `fpsX.Y`.
        is_padded: Repeat the last frame of a video that has too few; otherwise such a video gives all its frames.

    Returns:
        Frame numbers below `num_frames`, ascending.

    Raises:
        ConfigError: Unknown method.
        DataError: `fpsX.Y` without a frame rate.
    """
    rate = check_sampling(method)
    if rate is not None:
        if fps is None:
            message = f"the video has no frame rate, which frame sampling {method} needs; use rand or middle"
            raise DataError(message, kind="video")
        indices = sample_at_rate(num_frames, fps=fps, rate=rate)
        if min_num <= len(indices) <= max_num:
            return indices
        method, num_wanted = "middle", min(max(len(indices), min_num), max_num)
    else:
        num_wanted = int(rng.integers(min_num, max_num, endpoint=True))
    if not is_padded:
        num_wanted = min(num_wanted, num_frames)
    if method == "uniform":
        return sample_segments(0, num_frames - 1, num_wanted)
    return sample_intervals(num_frames, num_wanted, rng=rng if method == "rand" else None)


def sample_intervals(num_frames: int, num_wanted: int, *, rng: np.random.Generator | None = None) -> list[int]:
    """One frame of each of `num_wanted` intervals of equal length: the middle one, or any one with a generator.

    A video with fewer frames gives all of them, then the last one again and again.
    """
    borders = np.linspace(0, num_frames, min(num_wanted, num_frames) + 1).astype(np.int64)
    first, stop = borders[:-1], borders[1:]
    chosen = (first + stop - 1) // 2 if rng is None else rng.integers(first, stop)
    indices = [int(index) for index in chosen]
    return indices + [indices[-1]] * (num_wanted - len(indices))


def sample_segments(first: int, last: int, num_wanted: int) -> list[int]:
    """The frames that the published MVBench evaluation takes from `first` to `last` (both included).

    `int(first + s / 2 + round(s * i))` with `s = (last - first) / num_wanted` for i = 0 ... num_wanted - 1. A short
    range repeats frames.
    """
    segment = (last - first) / num_wanted
    return [int(first + segment / 2 + round(segment * index)) for index in range(num_wanted)]


def sample_at_rate(num_frames: int, *, fps: float, rate: float) -> list[int]:
    """Frames shown at half a gap, one and a half gaps, ... of 1 / `rate` seconds; none for less than half a gap.

    The public code rounds to the nearest frame, which repeats and leaves out frames at rates near the video's own.

    Args:
        num_frames: Frames of the video.
        fps: Its frames per second.
        rate: Frames per second to take; above `fps` it takes every frame once.
    """
    gap = max(fps / rate, 1.0)
    num_gaps = int(num_frames / gap + 0.5)
    indices = (int(gap * (number + 0.5)) for number in range(num_gaps))
    return [index for index in indices if index < num_frames]


def find_clip(video: VideoClip) -> tuple[int, int]:
    """First and last frame of the part of a video that is meant.

    Seconds become frame numbers by `round(seconds * fps)`, by the frames' own times where the rate varies. An end
    behind the video's end is cut back to it.

    Raises:
        DataError: The video cannot be read, is a folder without `fps`, or has no frame in the clip.
    """
    info = read_video_info(video.path)
    if video.clip is None:
        return 0, info.num_frames - 1
    start, end = video.clip
    fps = video.fps or info.fps
    if fps is None:
        message = f"video {video.path} is a folder of frames without a rate, so a clip in seconds cannot be cut"
        raise DataError(message, kind="video")
    if info.is_constant_rate:
        first, last = max(0, round(start * fps)), min(round(end * fps), info.num_frames - 1)
    else:
        seconds = _read_index(_stamp(video.path)).seconds
        first, last = int(np.searchsorted(seconds, start)), int(np.searchsorted(seconds, end, side="right")) - 1
    if first > last:
        raise DataError(
            f"video {video.path} has no frame between {start:g} and {end:g} seconds (it has {info.num_frames} frames, "
            f"{fps:g} per second); correct the clip",
            kind="video",
        )
    return first, last


def choose_frames(video: VideoClip, *, num_frames: int) -> list[int]:
    """The frames of a video that an answer is based on: its own `frames`, else `num_frames` by `sample_segments`.

    Raises:
        DataError: As of `find_clip`, or a frame that the video does not have.
    """
    if video.frames is None:
        return sample_segments(*find_clip(video), num_frames)
    total = read_video_info(video.path).num_frames
    wrong = next((frame for frame in video.frames if not 0 <= frame < total), None)
    if wrong is not None or not video.frames:
        raise DataError(f"frame {wrong} of video {video.path} is wanted, it has {total}; expected 0 to {total - 1}")
    return list(video.frames)


# What a file holds --------------------------------------------------------------------------------------------------


def list_frames(folder: str | Path) -> list[Path]:
    """Pictures of a folder of frames, numbers in their names sorted as numbers; hidden files are none.

    Raises:
        DataError: The folder has none.
    """
    extensions = Image.registered_extensions()
    try:
        listed = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise DataError(f"video {folder} cannot be read: {error.strerror}; check the folder", kind="video") from error
    names = [name for name in listed if os.path.splitext(name)[1].lower() in extensions]
    if not names:
        message = f"video {folder} is a folder without pictures, expected one file per frame; replace it"
        raise DataError(message, kind="video")
    return [Path(folder) / name for name in sorted(names, key=_natural_key)]


def _natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    parts = re.split(r"(\d+)", name.lower())
    return [(text, int(number or 0)) for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True)], name


def read_video_info(path: MediaPath) -> VideoInfo:
    """Number of frames, rate, duration and size, without decoding.

    A file that has not changed since it was last read is not opened again.

    Raises:
        DataError: The file is missing, empty, damaged, or has no video stream.
    """
    if os.path.isdir(path):
        frames = list_frames(path)
        return VideoInfo(len(frames), None, None, *read_image_size(frames[0]))
    return _read_info(_stamp(path))


def _stamp(path: MediaPath) -> FileStamp:
    """A file's path, size and time, which stand for its version."""
    try:
        return stamp_media(path)
    except (FileNotFoundError, NotADirectoryError):
        message = f"video {path} not found; correct the path, or the data set's root in the meta file"
        raise DataError(message, kind="missing") from None
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), getattr(error, "strerror", None) or str(error)) from error


@lru_cache(maxsize=2**14)
def _read_info(stamp: FileStamp) -> VideoInfo:
    path = stamp.path
    with _open_video(path) as (container, stream):
        num_frames, rate, slowest = stream.frames, stream.average_rate, stream.base_rate
        width, height = stream.codec_context.width, stream.codec_context.height
        duration = _read_duration(container, stream)
    is_constant = bool(rate and slowest) and abs(rate - slowest) <= _RATE_TOLERANCE * slowest
    if not num_frames or not rate or not duration:
        index = _read_index(stamp)
        num_frames, duration = num_frames or index.num_frames, duration or index.duration
        rate = index.rate or rate
        is_constant = index.is_regular
    if num_frames < 1 or min(width, height) < 1:
        _refuse(path, f"it has {num_frames} frames of {width} x {height} pixels")
    return VideoInfo(num_frames, float(rate) if rate else None, duration, width, height, is_constant)


def _read_duration(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None


@dataclass(frozen=True)
class _Index:
    """The packets of a video, as far as they say when its frames are shown.

    Attributes:
        times: When each frame is shown, ascending, in units of `unit`; empty when the file does not say.
        key_times: When the keyframes are shown, ascending.
        key_seeks: Where to seek in order to get them.
        num_frames: Number of frames.
        unit: Seconds.
    """

    times: np.ndarray
    key_times: np.ndarray
    key_seeks: np.ndarray
    num_frames: int
    unit: float

    @property
    def seconds(self) -> np.ndarray:
        return (self.times - self.times[:1]) * self.unit

    @property
    def rate(self) -> float | None:
        """Frames per second on average, as far as that can be said."""
        return (len(self.times) - 1) / float(self.seconds[-1]) if len(self.times) > 1 else None

    @property
    def duration(self) -> float | None:
        """Seconds, if the last frame is shown as long as the mean."""
        return self.num_frames / self.rate if self.rate else None

    @property
    def is_regular(self) -> bool:
        """Every frame is shown within half a frame of its place at the average rate."""
        if not self.rate:
            return True
        return bool(np.all(np.abs(self.seconds * self.rate - np.arange(len(self.times))) < 0.5))


@lru_cache(maxsize=16)
def _read_index(stamp: FileStamp) -> _Index:
    """Read all packets of a video, decoding none; 8 bytes per frame are kept."""
    times, key_times, key_seeks = array("q"), array("q"), array("q")
    num_frames = 0
    with _open_video(stamp.path) as (container, stream):
        unit = float(stream.time_base)
        for packet in container.demux(stream):
            if not packet.size:
                continue
            num_frames += not packet.is_discard
            if packet.pts is None:
                continue
            if not packet.is_discard:
                times.append(packet.pts)
            if packet.is_keyframe:
                key_times.append(packet.pts)
                key_seeks.append(packet.pts if packet.dts is None else min(packet.pts, packet.dts))
    shown = np.unique(np.asarray(times, dtype=np.int64))
    if len(shown) < num_frames:  # some frame has no time of its own
        shown = shown[:0]
    order = np.argsort(np.asarray(key_times, dtype=np.int64))
    keys, seeks = (np.asarray(values, dtype=np.int64)[order] for values in (key_times, key_seeks))
    return _Index(shown, keys, seeks, num_frames, unit)


# Pictures -----------------------------------------------------------------------------------------------------------


def load_frames(path: MediaPath, indices: Sequence[int]) -> Iterator[Image.Image]:
    """Decode frames, one picture (RGB) per index.

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
        pictures: Iterator[Image.Image] = (load_image(frames[index]) for index in distinct)
    else:
        pictures = _decode(_stamp(path), distinct, num_frames)
    shown: int | None = None
    for index in indices:
        if index != shown:
            picture, shown = next(pictures), index
        yield picture


def _decode(stamp: FileStamp, indices: Sequence[int], num_frames: int) -> Iterator[Image.Image]:
    index = _read_index(stamp)
    if not len(index.times) or not len(index.key_times):
        yield from _decode_by_counting(stamp.path, indices, num_frames)
        return
    last = len(index.times) - 1
    wanted = [
        number if number <= last else _replace_missing(stamp.path, number, last, num_frames) for number in indices
    ]
    yield from _decode_by_time(stamp.path, index, [int(index.times[number]) for number in wanted])


def _decode_by_time(path: str, index: _Index, times: Sequence[int]) -> Iterator[Image.Image]:
    """The frames shown at the given times, each from the keyframe before it on."""
    with _open_video(path) as (container, stream):
        frames, current, key = container.decode(stream), None, 0
        for time in times:
            key_before, key = key, max(int(np.searchsorted(index.key_times, time, side="right")) - 1, 0)
            if key <= key_before and (current is None or current.pts <= time):
                current = _find_frame(frames, current, index, time)
            else:
                current = None
            for start in (key, 0):  # again from the beginning, should the seek lead behind the frame
                if current is None:
                    container.seek(int(index.key_seeks[start]), stream=stream)
                    frames = container.decode(stream)
                    current = _find_frame(frames, None, index, time)
            if current is None:
                _refuse(path, f"the frame at {time * index.unit:.3f} seconds is missing or damaged")
            yield _convert(path, current)


def _find_frame(frames: Iterator[Any], current: Any, index: _Index, time: int) -> Any:
    """The frame that is shown at `time`; None if `frames` go on behind it.

    A packet may show nothing by itself (alternate reference frames of VP8); the frame of the next one is taken then.
    """
    following = int(np.searchsorted(index.times, time)) + 1
    limit = int(index.times[min(following, len(index.times) - 1)])
    while current is None or current.pts < time:
        current = next((frame for frame in frames if frame.pts is not None), None)
        if current is None:
            return None
    return current if current.pts <= limit else None


def _decode_by_counting(path: str, indices: Sequence[int], num_frames: int) -> Iterator[Image.Image]:
    """Frames of a file that does not say when they are shown: from its beginning on."""
    position = 0
    while position < len(indices):
        with _open_video(path) as (container, stream):
            frames, current, number = container.decode(stream), None, -1
            while position < len(indices) and indices[position] >= number:
                while number < indices[position]:
                    following = next(frames, None)
                    if following is None:
                        if current is None:
                            _refuse(path, "no frame can be decoded")
                        _replace_missing(path, indices[position], number, num_frames)
                        break
                    current, number = following, number + 1
                position += 1
                yield _convert(path, current)


def _replace_missing(path: str, wanted: int, last: int, num_frames: int) -> int:
    """The last frame that a file holds, in place of one that only its header knows."""
    if last < 0 or wanted >= num_frames or num_frames - 1 - last > max(1, _MISSING_SHARE * num_frames):
        _refuse(path, f"frame {wanted} is missing: its header announces {num_frames} frames, it holds {last + 1}")
    return last


def _convert(path: str, frame: Any) -> Image.Image:
    if frame.is_corrupt:
        _refuse(path, f"the frame at {frame.time} seconds is damaged")
    return Image.fromarray(frame.to_ndarray(format="rgb24"))


@contextmanager
def _open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream; only this one file is read, whatever it refers to."""
    try:
        local = find_local(path)
        with ExitStack() as opened:
            if os.path.isfile(local):
                source: Any = f"file:{os.path.abspath(local)}"
            else:
                source = opened.enter_context(open_media(path))
            options = {"protocol_whitelist": "file"}
            container = opened.enter_context(av.open(source, container_options=options))
            pictures = int(av.stream.Disposition.attached_pic)
            stream = next((each for each in container.streams.video if not int(each.disposition) & pictures), None)
            if stream is None:
                kinds = ", ".join(sorted({each.type for each in container.streams})) or "none"
                _refuse(path, f"it has no video stream (streams: {kinds})")
            if stream.codec_context is None:
                _refuse(path, "its video stream is of a kind that PyAV cannot decode")
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except (OSError, ValueError, MemoryError) as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error


def _refuse(path: str, cause: str) -> NoReturn:
    raise _unreadable(path, cause)


def _unreadable(path: str, cause: str) -> DataError:
    return DataError(f"video {path} cannot be read: {cause}; replace the file or remove its record", kind="video")
