"""Video sampling: which frames of a video are shown, by number; nothing is decoded.

frames of a video     0 1 2 3 | 4 5 6 7 | 8 9 ...            three intervals of equal length
rand                    ^           ^     ^                   any frame of each interval, the last one included
middle                  ^         ^       ^                   the middle one (rounded down)
"""

import re
from dataclasses import dataclass

import numpy as np

from internvl.data.storage.media import MediaPath
from internvl.data.video.headers import read_seconds, read_video_info
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

VIDEO_PLACEHOLDER = "<video>"  # stands for one video in a prompt or an annotation


@dataclass(frozen=True)
class VideoClip:
    """A video, or a part of it."""

    path: MediaPath  # file, folder of frames, member of an archive, or URL
    clip: tuple[float, float] | None = None  # first and last second; None: all of it
    fps: float | None = None  # frames per second of a folder (needed with `clip`); files know their own
    frames: tuple[int, ...] | None = None  # the frames to show, instead of a sample; numbers from 0 on


def label_frames(num_frames: int) -> str:
    """What `<video>` becomes: `Frame1: <image>`, `Frame2: <image>`, ... on lines of their own.

    This is the form of the published MVBench evaluation. The public training code writes no space after the colon and
    drops the line break between the last frame and the question; here training and inference use one form.
    """
    return "\n".join(f"Frame{number}: {IMAGE_PLACEHOLDER}" for number in range(1, num_frames + 1))


def check_sampling(method: str) -> float | None:
    """The frames per second of `fpsX.Y`; None for `rand`, `middle` and `uniform`.

    Raises ConfigError for any other method.
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
    """Choose the frames that a training document shows: ascending numbers.

    The number of frames is drawn from `min_num` to `max_num`, both included (`fpsX.Y`: follows from the duration,
    within the two limits). Differences from the public code: `rand` can draw the last frame of an interval;
    `fpsX.Y` thins out a long video evenly instead of cutting off its end, and gives a very short one `min_num` frames
    instead of none.

    Args:
        num_frames: Frames to choose from, at least 1.
        method: `rand`, `middle`, `uniform` (`sample_segments`) or `fpsX.Y`.
        rng: Draws the number of frames, and the frames of `rand`.
        fps: Frames per second of the video, for `fpsX.Y`.
        is_padded: Repeat the last frame of a video that is too short; otherwise such a video gives all its frames.

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

    A rate above the video's `fps` takes every frame once.
    """
    # The public code rounds to the nearest frame, which repeats and leaves out frames at rates close to `fps`.
    gap = max(fps / rate, 1.0)
    num_gaps = int(num_frames / gap + 0.5)
    indices = (int(gap * (number + 0.5)) for number in range(num_gaps))
    return [index for index in indices if index < num_frames]


def find_clip(video: VideoClip) -> tuple[int, int]:
    """First and last frame of the part of a video that is meant.

    Seconds become frame numbers by `round(seconds * fps)`, by the frames' own times where the rate varies. An end
    after the video's end is cut back to it.

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
        seconds = read_seconds(video.path)
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

    Raises DataError as `find_clip` does, or for a frame that the video does not have.
    """
    if video.frames is None:
        return sample_segments(*find_clip(video), num_frames)
    total = read_video_info(video.path).num_frames
    wrong = next((frame for frame in video.frames if not 0 <= frame < total), None)
    if wrong is not None or not video.frames:
        raise DataError(f"frame {wrong} of video {video.path} is wanted, it has {total}; expected 0 to {total - 1}")
    return list(video.frames)
