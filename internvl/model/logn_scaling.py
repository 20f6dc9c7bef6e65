"""Log-n scaling: a query that sees more keys than in training is made longer, so that attention stays as sharp.

    s(n) = max(1, log n / log N)      n: keys that a query sees in its document, itself included; N: `logn_scaling`

The entropy of a softmax grows with the number of its entries: among 16 times as many keys the one that matters gets a
smaller share of the attention, however near its position is. With scores multiplied by log n / log N that share stays
about the same (Su Jianlin, "From the invariance of entropy to attention's scale", https://kexue.fm/archives/8823; also
in Qwen, arXiv 2309.16609). n counts tokens, not rotary positions: the visual tokens of an image are as many keys at any
stride. A token's n depends on nothing behind it, so that cached keys and values stay right.

Off unless the decoder's config says `"logn_scaling": N`. Queries are scaled at the attention seam (attention.py), so
that every decoder and every attention function has it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError
from .v2pe import ordinary_positions


def check_logn_scaling(train_length: Any, *, source: str) -> None:
    """Refuse what is no number of tokens.

    Args:
        train_length: N, tokens of the contexts that the model was trained on; None: no scaling.
        source: Where it stands, for the error.

    Raises:
        ConfigError: Not a whole number of at least 2 (whose logarithm queries are divided by).
    """
    if train_length is None:
        return
    if isinstance(train_length, bool) or not isinstance(train_length, int) or train_length < 2:
        raise ConfigError(
            f"{source} is {train_length!r}, expected the number of tokens that the model was trained on, a whole "
            "number of at least 2, such as 32768"
        )


def choose_logn_scaling(config: Any, train_length: int | None) -> None:
    """Make a decoder's config say what a flag asks for.

    Args:
        config: Of the decoder.
        train_length: N; 0: no scaling; None: the config stays as it is.

    Raises:
        ConfigError: As of `check_logn_scaling`.
    """
    if train_length is None:
        return
    check_logn_scaling(train_length or None, source="--logn_scaling")
    config.logn_scaling = train_length or None


def read_logn_scaling(config: Any) -> int | None:
    """N of a decoder's config; None: no scaling."""
    return getattr(config, "logn_scaling", None)


def logn_scales(num_keys: Tensor, train_length: int) -> Tensor:
    """s(n) of every query: float32, same shape as `num_keys` (whole numbers of at least 1)."""
    scales = num_keys.to(torch.float64).log() / math.log(train_length)
    return scales.clamp(min=1.0).to(torch.float32)


def build_query_scales(
    config: Any,
    *,
    states: Tensor,
    past_key_values: Any,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    num_keys: Tensor | None,
) -> Tensor | None:
    """Factors of the queries of one forward pass.

    Args:
        config: Of the decoder.
        states: (batch, length, ...), what the pass runs on; its shape and device count.
        past_key_values: Cache whose tokens stand in front of them; None: none.
        attention_mask: (batch, cached + length), 0 where padded.
        cu_seqlens: (documents + 1,) borders of a packed row; every document counts from 1.
        num_keys: (batch, length) n of every token, of a process that holds a part of the row; None: it holds all.

    Returns:
        float32, (batch, length) or (1, length); None without scaling.
    """
    train_length = read_logn_scaling(config)
    if train_length is None:
        return None
    if num_keys is None:
        batch, length = states.shape[:2]
        num_cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        num_keys = 1 + ordinary_positions(batch, length, num_cached, attention_mask, cu_seqlens, states.device)
    return logn_scales(num_keys, train_length)
