"""Interleaved M-RoPE: the axes of M-RoPE take turns along the frequencies (Qwen3-VL, arXiv 2511.21631).

Tokens stand where M-RoPE places them (positions_mrope.py), frames of a video one by one between their labels. Sections
give one axis the fastest frequencies and another the slowest; here each has fast and slow ones, and the slowest are
left to time:

    frequency   0  1  2  3  4  5  6  7 ... 57 58 59 | 60 61 62 63        24 time, 20 rows, 20 columns of 64
    axis        t  r  c  t  r  c  t  r ...  t  r  c |  t  t  t  t
"""

import torch
from torch import Tensor

from .positions_mrope import next_text, place
from .positions_scheme import Scheme
from .shapes import Int64


def axes_of_channels(num_frequencies: int, num_kv_heads: int) -> Int64[Tensor, " frequencies"]:
    """Time, row, column in turn, in the first fifteen sixteenths of the frequencies; then time."""
    axes = torch.arange(num_frequencies) % 3
    axes[3 * (5 * num_frequencies // 16) :] = 0
    return axes


MROPE_INTERLEAVED = Scheme(place, axes_of_channels, next_text, num_axes=3)
