from dataclasses import replace

import pytest
import torch

from internvl.data.collate import collate_row
from internvl.data.encode import EncodedDocument


def make_document(first: int, num_tokens: int, tiles_per_image: tuple[int, ...]) -> EncodedDocument:
    ids = torch.arange(first, first + num_tokens)
    num_tiles = sum(tiles_per_image)
    return EncodedDocument(
        input_ids=ids,
        labels=torch.where(ids % 2 == 0, ids, -100),
        pixel_values=torch.full((num_tiles, 3, 2, 2), first, dtype=torch.uint8),
        image_flags=torch.ones(num_tiles, dtype=torch.int64),
        image_strides=torch.tensor([first + i for i in range(len(tiles_per_image))], dtype=torch.int64),
        image_grids=torch.tensor([[1, tiles, 0, 0] for tiles in tiles_per_image], dtype=torch.int64).reshape(-1, 4),
        tiles_per_image=tiles_per_image,
    )


def test_documents_are_joined_end_to_end_with_their_borders():
    batch = collate_row([make_document(0, 4, (2, 1)), make_document(10, 3, ()), make_document(20, 2, (1,))])
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 10, 11, 12, 20, 21]]
    assert batch["labels"].tolist() == [[0, -100, 2, -100, 10, -100, 12, 20, -100]]
    assert batch["cu_seqlens"].tolist() == [0, 4, 7, 9]
    assert batch["image_strides"].tolist() == [0, 1, 20]
    assert batch["image_grids"].tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert batch["image_flags"].tolist() == [1, 1, 1, 1]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 0, 0, 20]


def test_no_dtype_is_a_float_even_without_images():
    for documents in ([make_document(0, 4, (1,))], [make_document(0, 4, ())]):
        dtypes = {name: tensor.dtype for name, tensor in collate_row(documents).items()}
        assert dtypes.pop("pixel_values") == torch.uint8
        assert dtypes.pop("cu_seqlens") == torch.int32
        assert set(dtypes.values()) == {torch.int64}
    assert collate_row(documents)["pixel_values"].shape == (0, 3, 2, 2)


@pytest.mark.parametrize("gap", [0, 1])
def test_tiles_that_lie_end_to_end_are_not_copied(gap):
    room = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 2, 2).contiguous()
    places = (slice(1, 4), slice(4, 4), slice(4 + gap, 6 + gap))
    tiles = [room[place] for place in places]
    documents = [replace(make_document(0, 4, (len(part),)), pixel_values=part) for part in tiles]
    joined = collate_row([make_document(0, 4, ()), *documents])["pixel_values"]
    assert torch.equal(joined, torch.cat(tiles))
    assert (joined.data_ptr() == room[1].data_ptr()) == (gap == 0)


def test_neighbouring_tensors_of_different_memory_are_copied():
    documents = [make_document(first, 4, (1,)) for first in (0, 10)]
    joined = collate_row(documents)["pixel_values"]
    assert joined[:, 0, 0, 0].tolist() == [0, 10]
    assert joined.data_ptr() not in [document.pixel_values.data_ptr() for document in documents]


def test_an_empty_row_is_refused():
    with pytest.raises(ValueError, match="without documents"):
        collate_row([])
