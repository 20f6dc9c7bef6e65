"""Video headers: how many frames a video has, how fast they follow each other, how large they are.

The number of frames comes from the header where it is given there, else from counting packets, which reads the file but
decodes nothing. How frames are turned is known from the first one.
"""

import os
from array import array
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float, Int64
from PIL import Image

from internvl.data.natural_order import natural_key
from internvl.data.storage.cache import FileStamp
from internvl.data.storage.media import MediaPath, read_image_size
from internvl.data.storage.pixels import PICTURE_FORMATS
from internvl.data.video.opening import open_video, refuse, stamp_video
from internvl.data.video.rotation import is_sideways
from internvl.data.video.webp import is_webp, read_frame_times, read_webp_size
from internvl.errors import DataError

_MAX_PIXELS = 2 * 89_478_485  # of a frame: pillow's limit against decompression bombs
_RATE_TOLERANCE = 0.01  # a header whose mean and base rate differ by less is taken as constant


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says."""

    num_frames: int
    fps: float | None  # frames per second, on average; None for a folder
    duration: float | None  # seconds; None for a folder
    width: int  # in pixels, as shown (see rotation.py), like the height
    height: int
    is_constant_rate: bool = True  # frame i is shown at i / fps


def list_frames(folder: str | Path) -> list[Path]:
    """Pictures of a folder of frames, in natural order (`2.jpg` before `10.jpg`); hidden files do not count.

    Raises DataError if there are none.
    """
    extensions = {ending for ending, kind in Image.registered_extensions().items() if kind in PICTURE_FORMATS}
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
    """Number of frames, rate, duration and size as shown; at most one frame is decoded, for how it is turned.

    A file that has not changed since it was last read is not opened again. Raises DataError if it is missing, empty,
    damaged, or has no video stream.
    """
    if os.path.isdir(path):
        frames = list_frames(path)
        return VideoInfo(len(frames), None, None, *read_image_size(frames[0]))
    return _read_info(stamp_video(path))


@lru_cache(maxsize=2**14)
def _read_info(stamp: FileStamp) -> VideoInfo:
    path = stamp.path
    info = VideoInfo(0, None, None, *read_webp_size(path)) if is_webp(path) else _read_container(path)
    if not info.num_frames or not info.fps or not info.duration:
        index = read_index(stamp)
        info = replace(
            info,
            num_frames=info.num_frames or index.num_frames,
            fps=index.rate or info.fps,
            duration=info.duration or index.duration,
            is_constant_rate=index.is_regular,
        )
    if info.num_frames < 1:
        refuse(path, "it has no frames")
    return info


def _read_container(path: str) -> VideoInfo:
    with open_video(path) as (container, stream):
        rate, base_rate = stream.average_rate, stream.base_rate
        width, height = stream.codec_context.width, stream.codec_context.height
        if min(width, height) < 1 or width * height > _MAX_PIXELS:
            refuse(path, f"its frames have {width} x {height} pixels, expected 1 to {_MAX_PIXELS:,}")
        if _is_first_frame_sideways(container, stream):
            width, height = height, width
        duration = _read_duration(container, stream)
        is_constant = bool(rate and base_rate and abs(rate - base_rate) <= _RATE_TOLERANCE * base_rate)
        return VideoInfo(stream.frames, float(rate) if rate else None, duration, width, height, is_constant)


def _is_first_frame_sideways(container: InputContainer, stream: VideoStream) -> bool:
    # PyAV gives the display matrix with decoded frames only.
    try:
        frame = next(container.decode(stream), None)
    except av.FFmpegError:  # said when the frame itself is wanted
        return False
    return frame is not None and is_sideways(frame)


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
    if is_webp(stamp.path):
        shown = np.asarray(read_frame_times(stamp.path), dtype=np.int64)
        return PacketIndex(shown, shown, shown, len(shown), 0.001)
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
