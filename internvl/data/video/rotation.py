"""Rotation: frames upright, as players show them.

A display matrix in the header of a container or stream says how a frame is turned and mirrored. A pixel at x (to the
right) and y (down) is shown at (a x + c y, b x + d y); here a, b, c and d are read as a quarter turn each.
"""

from typing import cast

import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from typing_extensions import Buffer


def is_sideways(frame: VideoFrame) -> bool:
    """Whether width and height of a frame change places when it is shown."""
    a, b, *_ = _read_matrix(frame)
    return abs(b) > abs(a)


def turn_upright(
    pixels: UInt8[np.ndarray, "height width channels"], frame: VideoFrame
) -> UInt8[np.ndarray, "shown_height shown_width channels"]:
    """The pixels of a frame as they are shown."""
    a, b, c, d = _read_matrix(frame)
    if is_sideways(frame):
        pixels, right, down = pixels.swapaxes(0, 1), c, b
    else:
        right, down = a, d
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _read_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d) of a frame's display matrix, 1 being 65,536; the identity without one."""
    matrix = cast(Buffer | None, frame.side_data.get("DISPLAYMATRIX"))
    if matrix is None:
        return 1, 0, 0, 1
    (a, b, _), (c, d, _), _ = np.frombuffer(memoryview(matrix), dtype=np.int32).reshape(3, 3).tolist()
    return a, b, c, d
