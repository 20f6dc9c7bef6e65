"""Video headers: how many frames a video has, how fast they follow each other, how large they are.

The number of frames comes from the header where it is given there, else from counting packets, which reads the file but
decodes nothing.
"""

import os
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float, Int64
from PIL import Image

from internvl.data.natural_order import natural_key
from internvl.data.storage.cache import FileStamp
from internvl.data.storage.media import MediaPath, find_local, open_media, read_image_size, stamp_media
from internvl.errors import DataError

_RATE_TOLERANCE = 0.01  # a header whose mean and base rate differ by less is taken as constant


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says."""

    num_frames: int
    fps: float | None  # frames per second, on average; None for a folder
    duration: float | None  # seconds; None for a folder
    width: int  # in pixels, like the height
    height: int
    is_constant_rate: bool = True  # frame i is shown at i / fps


def list_frames(folder: str | Path) -> list[Path]:
    """Pictures of a folder of frames, in natural order (`2.jpg` before `10.jpg`); hidden files do not count.

    Raises DataError if there are none.
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
    return [Path(folder) / name for name in sorted(names, key=lambda name: (natural_key(name.lower()), name))]


def read_video_info(path: MediaPath) -> VideoInfo:
    """Number of frames, rate, duration and size, without decoding.

    A file that has not changed since it was last read is not opened again. Raises DataError if it is missing, empty,
    damaged, or has no video stream.
    """
    if os.path.isdir(path):
        frames = list_frames(path)
        return VideoInfo(len(frames), None, None, *read_image_size(frames[0]))
    return _read_info(stamp_video(path))


def stamp_video(path: MediaPath) -> FileStamp:
    """The present version of a video file. Raises DataError if it is missing or not a regular file."""
    try:
        return stamp_media(path)
    except (FileNotFoundError, NotADirectoryError):
        message = f"video {path} not found; correct the path, or the data set's root in the meta file"
        raise DataError(message, kind="missing") from None
    except (OSError, ValueError) as error:
        refuse(str(path), getattr(error, "strerror", None) or str(error), error)


@lru_cache(maxsize=2**14)
def _read_info(stamp: FileStamp) -> VideoInfo:
    path = stamp.path
    with open_video(path) as (container, stream):
        num_frames, mean_rate, base_rate = stream.frames, stream.average_rate, stream.base_rate
        width, height = stream.codec_context.width, stream.codec_context.height
        duration = _read_duration(container, stream)
    is_constant = bool(mean_rate and base_rate and abs(mean_rate - base_rate) <= _RATE_TOLERANCE * base_rate)
    rate = float(mean_rate) if mean_rate else None
    if not num_frames or not rate or not duration:
        index = read_index(stamp)
        num_frames, duration = num_frames or index.num_frames, duration or index.duration
        rate = index.rate or rate
        is_constant = index.is_regular
    if num_frames < 1 or min(width, height) < 1:
        refuse(path, f"it has {num_frames} frames of {width} x {height} pixels")
    return VideoInfo(num_frames, rate, duration, width, height, is_constant)


def _read_duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None


@dataclass(frozen=True)
class PacketIndex:
    """When the frames of a video are shown, as its packets say."""

    times: Int64[np.ndarray, " frames"]  # ascending, in units of `unit`; empty when the file does not say
    key_times: Int64[np.ndarray, " keyframes"]  # those of the keyframes, ascending
    key_seeks: Int64[np.ndarray, " keyframes"]  # where to seek to decode them
    num_frames: int
    unit: float  # in seconds

    @property
    def seconds(self) -> Float[np.ndarray, " frames"]:
        """When each frame is shown, from the first one on."""
        return (self.times - self.times[:1]) * self.unit

    @property
    def rate(self) -> float | None:
        """Frames per second on average; None for less than two frames with a time."""
        return (len(self.times) - 1) / float(self.seconds[-1]) if len(self.times) > 1 else None

    @property
    def duration(self) -> float | None:
        """Seconds, if the last frame is shown for as long as the others on average."""
        return self.num_frames / self.rate if self.rate else None

    @property
    def is_regular(self) -> bool:
        """Every frame is shown within half a frame of its place at the average rate."""
        if not self.rate:
            return True
        return bool(np.all(np.abs(self.seconds * self.rate - np.arange(len(self.times))) < 0.5))


def read_seconds(path: MediaPath) -> Float[np.ndarray, " frames"]:
    """When each frame of a file is shown, in seconds after the first one."""
    return read_index(stamp_video(path)).seconds


@lru_cache(maxsize=16)
def read_index(stamp: FileStamp) -> PacketIndex:
    """Read all packets of a video, decoding none; 8 bytes per frame are kept."""
    times, key_times, key_seeks = array("q"), array("q"), array("q")
    num_frames = 0
    with open_video(stamp.path) as (container, stream):
        unit = float(stream.time_base or 0)
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
    return PacketIndex(shown, keys, seeks, num_frames, unit)


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A container and its video stream. Raises DataError if opening or the block fails, or it has no video stream."""
    try:
        local = find_local(path)
        with ExitStack() as opened:
            if os.path.isfile(local):
                source: str | BinaryIO = f"file:{os.path.abspath(local)}"
            else:
                source = opened.enter_context(open_media(path))
            options = {"protocol_whitelist": "file"}  # a playlist must not make us read other files or the network
            container = opened.enter_context(av.open(source, "r", container_options=options))
            pictures = int(av.stream.Disposition.attached_pic)
            stream = next((each for each in container.streams.video if not int(each.disposition) & pictures), None)
            if stream is None:
                kinds = ", ".join(sorted({each.type for each in container.streams})) or "none"
                refuse(path, f"it has no video stream (streams: {kinds})")
            if stream.codec_context is None:
                refuse(path, "its video stream is of a kind that PyAV cannot decode")
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        refuse(path, error.strerror or str(error), error)
    except (OSError, ValueError, MemoryError) as error:
        refuse(path, str(error) or type(error).__name__, error)


def refuse(path: str, cause: str, error: BaseException | None = None) -> NoReturn:
    """Raise DataError: the video cannot be read; `error` is what another library raised."""
    message = f"video {path} cannot be read: {cause}; replace the file or remove its record"
    raise DataError(message, kind="video") from error
