"""MHRoPE: every head of keys turns with one axis only, on all frequencies (arXiv 2510.23095).

Tokens stand where M-RoPE places them (positions_mrope.py). A quarter of the heads rotates with time, three eighths each
with row and column, so that every axis has fast and slow frequencies:

    key/value head   0  1 | 2  3  4 | 5  6  7        of 8
    axis             t  t | r  r  r | c  c  c

Queries rotate as the keys that they meet. Decoders of transformers rotate all heads alike, so this needs InternLM2.
"""

from torch import Tensor

from .positions_mrope import axes_of_channels as axes_of_mrope
from .positions_mrope import next_text, place
from .positions_scheme import Scheme
from .shapes import Int64


def axes_of_channels(num_frequencies: int, num_kv_heads: int) -> Int64[Tensor, "kv_heads frequencies"]:
    """M-RoPE's sections, of heads."""
    return axes_of_mrope(num_kv_heads, num_kv_heads).unsqueeze(1).expand(-1, num_frequencies)


MHROPE = Scheme(place, axes_of_channels, next_text, num_axes=3)
