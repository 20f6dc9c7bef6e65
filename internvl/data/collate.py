"""Collation: the documents of a row, joined end to end without padding, become the batch of one training step.

    document 0      document 1          cu_seqlens
    [a b c d]       [e f g]      ->     [0 4 7]         input_ids  (1, 7)   a b c d e f g

The borders of the documents travel as `cu_seqlens`. No entry is a float, since training frameworks cast floats to bf16;
tiles are uint8, which the model normalises.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from internvl.data.encode import EncodedDocument

Batch = dict[str, Tensor]


def collate_row(documents: Sequence[EncodedDocument]) -> Batch:
    """Join the documents of a row.

    Args:
        documents: At least one.

    Returns:
        input_ids and labels: int64 (1, tokens). cu_seqlens: int32 (documents + 1,). pixel_values: uint8
        (tiles, 3, S, S). image_flags: int64 (tiles,). image_strides: int64 (images,), units of 1/65536 positions.
        image_grids: int64 (images, 4), rows and columns of tiles, thumbnail, frame.
    """
    if not documents:
        raise ValueError("a row without documents; expected at least one")
    lengths = [len(document.input_ids) for document in documents]
    return {
        "input_ids": torch.cat([document.input_ids for document in documents]).unsqueeze(0),
        "labels": torch.cat([document.labels for document in documents]).unsqueeze(0),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "pixel_values": _join_tiles([document.pixel_values for document in documents]),
        "image_flags": torch.cat([document.image_flags for document in documents]),
        "image_strides": torch.cat([document.image_strides for document in documents]),
        "image_grids": torch.cat([document.image_grids for document in documents]),
    }


def _join_tiles(parts: Sequence[Tensor]) -> Tensor:
    """Tiles end to end, without a copy where they lie so in one tensor already (`SampleEncoder.encode(out=...)`)."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return parts[0]
    first = filled[0]
    place = first.storage_offset()
    for part in filled:
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or part.storage_offset() != place:
            return torch.cat(filled)
        place += part.numel()
    return first.as_strided((sum(map(len, filled)), *first.shape[1:]), first.stride())
