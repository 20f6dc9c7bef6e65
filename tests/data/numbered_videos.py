"""Videos whose pictures tell the numbers of their frames."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

FRAME_RATE = 10


def _numbered_pixels(number: int, size: tuple[int, int], noise: int) -> np.ndarray:
    """A picture that tells its number (0 to 99): the grey of its left half is the tens, of its right half the ones."""
    width, height = size
    levels = np.repeat([20 + 20 * (number // 10), 20 + 20 * (number % 10)], width // 2)
    grey = np.broadcast_to(levels[None, :, None], (height, width, 3)).astype(np.int64)
    return (grey + np.random.default_rng(number).integers(-noise, noise + 1, grey.shape)).clip(0, 255).astype(np.uint8)


def write_video(
    path: Path,
    num_frames: int,
    *,
    codec: str = "mpeg4",
    gop: int = 12,
    max_b_frames: int = 0,
    size: tuple[int, int] = (64, 48),
    seconds: Sequence[float] | None = None,
    noise: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose frames tell their numbers (modulo 100) by their greys; `seconds`: when each is shown."""
    unit = Fraction(1, FRAME_RATE) if seconds is None else Fraction(1, 1000)
    with av.open(str(path), "w", container_options=options or {}) as container:
        stream = container.add_stream(codec, rate=FRAME_RATE)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = max_b_frames
        stream.codec_context.time_base = unit
        stream.codec_context.thread_count = 1
        times = range(num_frames) if seconds is None else [round(second * 1000) for second in seconds]
        for packet in encode_frames(stream, times, unit=unit, size=size, noise=noise):
            container.mux(packet)
    return path


def encode_frames(
    stream: Any,
    times: Iterable[int],
    *,
    size: tuple[int, int],
    unit: Fraction = Fraction(1, FRAME_RATE),
    noise: int = 0,
) -> Iterator[av.Packet]:
    """Packets of frames that tell their numbers (modulo 100), shown at `times` in units of `unit` seconds."""
    for number, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(_numbered_pixels(number % 100, size, noise), format="rgb24")
        frame.pts, frame.time_base = time, unit
        yield from stream.encode(frame)
    yield from stream.encode()


def write_gif(path: Path, num_frames: int, *, size: tuple[int, int] = (64, 48)) -> Path:
    """Write an endless gif of numbered frames."""
    pictures = [Image.fromarray(_numbered_pixels(number, size, 0)) for number in range(num_frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // FRAME_RATE, loop=0)
    return path


def write_frames(path: Path, num_frames: int, *, size: tuple[int, int] = (64, 48)) -> Path:
    """Write a folder of numbered frames, 1.png, 2.png, ... 10.png, ..."""
    path.mkdir(parents=True)
    for number in range(num_frames):
        Image.fromarray(_numbered_pixels(number, size, 0)).save(path / f"{number + 1}.png")
    return path


def read_numbers(pictures: Iterable[Any]) -> list[int]:
    """Which frames (modulo 100) pictures of test videos show, by the middles of their halves."""
    numbers = []
    for picture in pictures:
        row = np.asarray(picture, dtype=np.float64).mean(axis=(0, 2))
        half, edge = len(row) // 2, len(row) // 8
        tens, ones = row[edge : half - edge], row[half + edge : -edge]
        numbers.append(10 * round((tens.mean() - 20) / 20) + round((ones.mean() - 20) / 20))
    return numbers


def tile_pictures(tiles: Any) -> np.ndarray:
    """Pixels, (tiles, height, width, 3)."""
    return tiles.numpy().transpose(0, 2, 3, 1)
