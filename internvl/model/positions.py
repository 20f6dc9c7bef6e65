"""Positions by name: the schemes that `--rope_pos_id_version` accepts, and which strides go with them.

    version             axes                    stride
    default             one                     none: an image advances like text
    v2pe_fix            one                     needed: positions that one tile spans
    v2pe_rnd            one                     drawn per image, in training
    mrope               time, row, column       optional: time then advances within an image as V2PE's axis does
    mrope_interleaved   likewise                likewise
    mhrope              likewise                likewise
    videorope           likewise                likewise
    hope                likewise                likewise

A scheme is a file of three pure functions (positions_scheme.py) and a line here. Packing, shared rows, caches,
generation and serving take positions as they are: float64, (batch, length) on one axis and (axes, batch, length) on
several; int64 under `default`, whose positions a decoder may scale.
"""

from typing import TypeVar

from torch import Tensor

from .errors import ConfigError
from .positions_hope import HOPE
from .positions_mhrope import MHROPE
from .positions_mrope import MROPE
from .positions_mrope_interleaved import MROPE_INTERLEAVED
from .positions_scheme import Scheme, Stride
from .positions_videorope import VIDEOROPE
from .shapes import Int, Int64, Num
from .v2pe import V2PE, check_positive

SCHEMES: dict[str, Scheme] = {
    "default": V2PE,
    "v2pe_fix": V2PE,
    "v2pe_rnd": V2PE,
    "mrope": MROPE,
    "mrope_interleaved": MROPE_INTERLEAVED,
    "mhrope": MHROPE,
    "videorope": VIDEOROPE,
    "hope": HOPE,
}
ROPE_POS_ID_VERSIONS = tuple(SCHEMES)

AnyStride = TypeVar("AnyStride", bound=Stride)


def find_scheme(version: str) -> Scheme:
    """The scheme of a version. Raises ConfigError unless it is one of `ROPE_POS_ID_VERSIONS`."""
    check_version(version)
    return SCHEMES[version]


def check_version(version: str) -> None:
    """Raise ConfigError unless `version` is one of `ROPE_POS_ID_VERSIONS`."""
    if version not in SCHEMES:
        raise ConfigError(f"unknown rope_pos_id_version {version!r}; expected one of {', '.join(SCHEMES)}")


def check_stride(version: str, stride: Stride | None) -> None:
    """Raise ConfigError unless version and stride fit together.

    `v2pe_fix` needs a positive finite stride. The others do without, but one that is given must be valid.
    """
    check_version(version)
    if stride is not None:
        check_positive(stride)
    elif version == "v2pe_fix":
        raise ConfigError(
            "rope_pos_id_version v2pe_fix needs rope_pos_id_stride (positions that one tile spans, for example 64)"
        )


def takes_stride(version: str) -> bool:
    """Whether one stride for all images has an effect."""
    return version == "v2pe_fix" or has_axes(version)


def has_axes(version: str) -> bool:
    """Whether positions of a version are on several axes, which the grids of tiles decide."""
    return find_scheme(version).num_axes > 1


def choose_positions(
    version: str | None, stride: AnyStride | None, saved_version: str, saved_stride: AnyStride | None
) -> tuple[str, AnyStride | None]:
    """Version and stride in effect: what is asked for, and from the checkpoint what is not.

    A stride alone is one of the checkpoint's version if that is on several axes, and means `v2pe_fix` otherwise. A
    version alone has the checkpoint's stride if that means the same to it: on one axis any of one axis, on several its
    own. Whether they fit together is for `check_stride`. Raises ConfigError for an unknown version.
    """
    if version is None:
        version = saved_version if stride is None or has_axes(saved_version) else "v2pe_fix"
    if stride is None and (version == saved_version or not (has_axes(version) or has_axes(saved_version))):
        stride = saved_stride
    return version, stride


def may_share_batch(first: str, second: str) -> bool:
    """Whether prompts on positions of two versions may be rows of one batch."""
    if has_axes(first) or has_axes(second):
        return first == second
    return (first == "default") == (second == "default")


def positions_per_row(
    position_ids: Num[Tensor, "*positions"], input_ids: Int[Tensor, "batch length"]
) -> Num[Tensor, "*axes batch length"]:
    """Expand positions given once, or once per row, to (batch, length), one per token of `input_ids`.

    Those of several axes are (axes, rows, length), and become (axes, batch, length).

    Raises:
        ValueError: The numbers of positions or rows do not fit.
    """
    batch, length = input_ids.shape
    is_on_axes = position_ids.dim() == 3 and len(position_ids) > 1
    rows = position_ids if is_on_axes else position_ids.reshape(-1, position_ids.shape[-1])
    if rows.shape[-1] != length or rows.shape[-2] not in (1, batch):
        raise ValueError(
            f"position_ids has {rows.shape[-1]} positions for {length} tokens, {rows.shape[-2]} rows for {batch}; "
            "give one position per token"
        )
    return rows.expand(*rows.shape[:-2], batch, length)


def final_lengths(
    position_ids: Num[Tensor, "*axes batch length"], num_new_tokens: int, version: str | None
) -> Int64[Tensor, " batch"]:
    """Length in positions of every prompt with its answer."""
    return next_text(position_ids, version).long() + num_new_tokens


def next_text(position_ids: Num[Tensor, "*axes batch length"], version: str | None) -> Num[Tensor, " batch"]:
    """Position of the first text after every prompt (V2PE, and thus `None`: `ceil(last) + 1`)."""
    # An image at the end may reach further than its last token, which on several axes is one of the thumbnail.
    furthest = position_ids[..., -1] if position_ids.dim() == 2 else position_ids.amax(dim=-1)
    return find_scheme(version or "default").next_text(furthest)
