"""Positions against the worked values of the published rule and against rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.model.errors import ConfigError
from internvl.model.positions import check_stride
from internvl.model.v2pe import build_position_ids, stride_to_units, units_to_strides

VISUAL = 9
BEGIN, END = 7, 8


def positions(ids, strides, tokens_per_tile=4, **kwargs):
    return build_position_ids(
        torch.tensor([ids], dtype=torch.int64),
        image_token_id=VISUAL,
        num_image_token=tokens_per_tile,
        strides=strides,
        **kwargs,
    )[0].tolist()


def image(tiles, tokens_per_tile=4):
    return [BEGIN, *[VISUAL] * (tiles * tokens_per_tile), END]


def reference(ids, strides, tokens_per_tile):
    """Token by token, in rationals."""
    out, last, index, inside = [], Fraction(-1), -1, 0
    for i, token in enumerate(ids):
        if token == VISUAL:
            if i == 0 or ids[i - 1] != VISUAL:
                index, inside, anchor = index + 1, 0, last
            inside += 1
            last = anchor + inside * Fraction(strides[index]) / tokens_per_tile
        else:
            last = Fraction(math.ceil(last)) + 1
        out.append(last)
    return out


@pytest.mark.parametrize(
    ("ids", "stride", "expected"),
    [
        ([1, 1, *image(2), 1, 1], 2, [0, 1, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9]),
        ([1, 1, *image(1), 1, 1], 3, [0, 1, 2, 2.75, 3.5, 4.25, 5, 6, 7, 8]),
        ([1, *image(1), 1], 6, [0, 1, 2.5, 4, 5.5, 7, 8, 9]),
        (image(1), 1, [0, 0.25, 0.5, 0.75, 1, 2]),
        ([1, *image(2), 1], 4, list(range(12))),
        ([1, *image(2), 1], None, list(range(12))),
        ([1, 1, 1], 1, [0, 1, 2]),
        ([1, *image(1)], Fraction(1, 16), [0, 1, 1 + 1 / 64, 1 + 2 / 64, 1 + 3 / 64, 1 + 4 / 64, 3]),
    ],
)
def test_positions_equal_the_worked_values(ids, stride, expected):
    assert positions(ids, stride) == expected


def test_adjacent_images_carry_their_own_strides():
    ids = [1, *image(1), *image(3), 1]
    expected = [0, 1, 1.25, 1.5, 1.75, 2, 3, 4, *[4 + k * 0.5 for k in range(1, 13)], 11, 12]
    assert positions(ids, [1, 2]) == expected


@settings(max_examples=200, deadline=None)
@given(
    layout=st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(1, 6),
            st.one_of(st.sampled_from([1, 2, 64, 256, 300]), st.integers(1, 2**22).map(lambda u: u / 65536)),
        ),
        max_size=6,
    ),
    tokens_per_tile=st.sampled_from([1, 3, 4, 7, 256]),
    tail=st.integers(0, 3),
)
def test_positions_equal_rational_arithmetic(layout, tokens_per_tile, tail):
    ids, strides = [], []
    for text, tiles, stride in layout:
        ids += [1] * text + image(tiles, tokens_per_tile)
        strides.append(stride)
    ids += [1] * tail
    if not ids:
        return
    got = positions(ids, strides, tokens_per_tile)
    for value, exact in zip(got, reference(ids, strides, tokens_per_tile), strict=True):
        assert value == pytest.approx(float(exact), rel=1e-15, abs=1e-15)


def test_long_rows_stay_exact():
    """A row of two million tokens: late visual tokens keep their increments, the end is where rationals put it."""
    tokens_per_tile, tiles, images = 256, 12, 650
    block = torch.tensor([1, *image(tiles, tokens_per_tile)])
    ids = block.repeat(images).unsqueeze(0)
    out = build_position_ids(ids, image_token_id=VISUAL, num_image_token=tokens_per_tile, strides=3)[0]
    per_block = 3 + tiles * 3
    assert out[-1].item() == images * per_block - 1
    last_visual = out[-1 - tokens_per_tile : -1]
    assert torch.equal(last_visual.diff(), torch.full_like(last_visual[1:], 3 / 256))


def test_rows_of_sixteen_million_tokens_stay_exact():
    """Images at random places and the end, each checked against rationals computed from the layout alone."""
    tokens_per_tile, text, length = 256, 17, 2**24
    block = torch.tensor([1] * text + image(1, tokens_per_tile), dtype=torch.int32)
    images, tail = divmod(length, len(block))
    ids = torch.cat([block.repeat(images), block.new_ones(tail)])
    stride = Fraction(3 * 65536 + 1, 65536)  # the end of every image is rounded up
    out = build_position_ids(ids, image_token_id=VISUAL, num_image_token=tokens_per_tile, strides=stride)
    assert out.shape == (length,)
    per_block = text + 2 + math.ceil(stride)
    picks = torch.randint(images, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    for i in [0, *picks, images - 1]:
        begin = i * per_block + text  # position of <img>
        exact = [*range(i * per_block, begin + 1), *[begin + k * stride / tokens_per_tile for k in range(1, 257)]]
        exact.append(begin + math.ceil(stride) + 1)
        got = out[i * len(block) : (i + 1) * len(block)].tolist()
        assert [Fraction(value) for value in got] == exact
    assert out[-1].item() == images * per_block + tail - 1


@pytest.mark.parametrize(
    ("stride", "tiles", "end"),
    [
        (Fraction(1, 10), 10, 2),  # float 0.1 is larger than 1/10: ten tiles of it end beyond 1
        (0.1, 10, 3),
        (Fraction(2, 3), 3, 3),
        (Fraction(1, 3), 4, 3),
        (1 + Fraction(1, 2**60), 1, 3),  # as a float it is 1
    ],
)
def test_fractions_are_taken_at_their_exact_value(stride, tiles, end):
    """The token behind the image sits at ceil(tiles * stride) + 1."""
    assert positions(image(tiles), stride)[-1] == end
    assert positions(image(tiles) + image(1), [stride, 4])[4 * tiles + 1] == end


def test_documents_may_be_empty_anywhere():
    ids = [*image(1), 1]
    borders = torch.tensor([0, 0, 0, 3, 3, len(ids), len(ids)])
    assert positions(ids, [1, 2], cu_seqlens=borders) == [0, 0.25, 0.5, -0.5, 0, 1, 2]


def test_documents_of_a_packed_row_start_at_zero():
    first, second = [1, *image(1)], [*image(2), 1]
    borders = torch.tensor([0, len(first), len(first), len(first) + len(second)])
    packed = positions(first + second, [1, 2], cu_seqlens=borders)
    assert packed == positions(first, 1) + positions(second, 2)


def test_visual_runs_of_different_documents_are_different_images():
    packed = positions([VISUAL] * 8, [4, 8], cu_seqlens=torch.tensor([0, 4, 8]))
    assert packed == [0, 1, 2, 3, 1, 3, 5, 7]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_shifts_nothing(side):
    ids = [1, *image(1), 1]
    pad, mask = [0] * 3, [0] * 3
    real = [1] * len(ids)
    padded = pad + ids if side == "left" else ids + pad
    mask = mask + real if side == "left" else real + mask
    got = positions(padded, 1, attention_mask=torch.tensor([mask]))
    assert [p for p, m in zip(got, mask, strict=True) if m] == positions(ids, 1)
    assert [p for p, m in zip(got, mask, strict=True) if not m] == [1.0] * 3


def test_batches_take_strides_row_by_row():
    ids = torch.tensor([[1, *image(1)], [*image(1), 1]])
    both = build_position_ids(ids, image_token_id=VISUAL, num_image_token=4, strides=torch.tensor([1, 2]))
    assert both[0].tolist() == positions(ids[0].tolist(), 1)
    assert both[1].tolist() == positions(ids[1].tolist(), 2)


def test_rows_of_a_batch_may_be_padded_on_different_sides():
    first, second, third = [1, *image(1)], [*image(2), 1, 1], [1, 1]
    length = 14
    pads = [length - len(first), length - len(second), length - len(third)]
    rows = [[VISUAL] * pads[0] + first, second + [0] * pads[1], [0] * 4 + third + [0] * (pads[2] - 4)]
    masks = [
        [0] * pads[0] + [1] * len(first),
        [1] * len(second) + [0] * pads[1],
        [0] * 4 + [1] * 2 + [0] * (pads[2] - 4),
    ]
    got = build_position_ids(
        torch.tensor(rows),
        image_token_id=VISUAL,
        num_image_token=4,
        strides=[Fraction(1, 2), 3],
        attention_mask=torch.tensor(masks),
    )
    assert got[0].tolist() == [1.0] * pads[0] + positions(first, Fraction(1, 2))
    assert got[1].tolist() == positions(second, 3) + [1.0] * pads[1]
    assert got[2].tolist() == [1.0] * 4 + [0, 1] + [1.0] * (pads[2] - 4)


STRIDE = st.one_of(
    st.sampled_from([1, 2, 64, 256, 300]),
    st.integers(1, 2**22).map(lambda units: units / 65536),
    st.fractions(Fraction(1, 50), 300, max_denominator=60),
)
DOCUMENT = st.lists(st.one_of(st.just(None), st.tuples(st.integers(1, 5), STRIDE)), max_size=8)


def write_document(layout, tokens_per_tile):
    """(ids, strides) of a document: None is a text token, (tiles, stride) an image between its borders."""
    ids = [token for item in layout for token in ([1] if item is None else image(item[0], tokens_per_tile))]
    return ids, [item[1] for item in layout if item is not None]


@settings(max_examples=150, deadline=None)
@given(documents=st.lists(DOCUMENT, min_size=1, max_size=5), tokens_per_tile=st.sampled_from([1, 3, 4, 7, 256]))
def test_packed_documents_equal_rational_arithmetic(documents, tokens_per_tile):
    row, strides, exact, borders = [], [], [], [0]
    for layout in documents:
        ids, own = write_document(layout, tokens_per_tile)
        row += ids
        strides += own
        exact += reference(ids, own, tokens_per_tile)
        borders.append(len(row))
    got = positions(row, strides, tokens_per_tile, cu_seqlens=torch.tensor(borders))
    assert got == pytest.approx([float(value) for value in exact], rel=1e-15, abs=1e-15)


@settings(max_examples=150, deadline=None)
@given(
    documents=st.lists(st.tuples(DOCUMENT, st.integers(0, 5), st.sampled_from([0, VISUAL])), min_size=1, max_size=4),
    left=st.booleans(),
    tokens_per_tile=st.sampled_from([1, 3, 4, 7]),
)
def test_padded_batches_equal_rational_arithmetic(documents, left, tokens_per_tile):
    """Padding may be any token, a visual one too."""
    written = [(*write_document(layout, tokens_per_tile), extra, pad) for layout, extra, pad in documents]
    length = max(len(ids) + extra for ids, _, extra, _ in written)
    rows, masks, exact, strides = [], [], [], []
    for ids, own, _, pad in written:
        padding = length - len(ids)
        before, after = (padding, 0) if left else (0, padding)
        rows.append([pad] * before + ids + [pad] * after)
        masks.append([0] * before + [1] * len(ids) + [0] * after)
        values = [float(value) for value in reference(ids, own, tokens_per_tile)]
        exact += [1.0] * before + values + [1.0] * after
        strides += own
    got = build_position_ids(
        torch.tensor(rows, dtype=torch.int64),
        image_token_id=VISUAL,
        num_image_token=tokens_per_tile,
        strides=strides,
        attention_mask=torch.tensor(masks),
    )
    assert got.shape == (len(rows), length)
    assert got.reshape(-1).tolist() == pytest.approx(exact, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("strides", [0, -1, float("nan"), float("inf"), [1, 0]])
def test_strides_must_be_positive(strides):
    with pytest.raises(ConfigError, match="positive"):
        positions([*image(1), *image(1)], strides)


def test_stride_count_must_match_the_images():
    with pytest.raises(ConfigError, match="3 strides for 2 images"):
        positions([*image(1), *image(1)], [1, 2, 3])


def test_borders_must_cover_the_row():
    with pytest.raises(ValueError, match="row's length"):
        positions([1, 1, 1], None, cu_seqlens=torch.tensor([0, 2]))


def test_units_carry_every_multiple_of_one_65536th():
    for stride in (1, 256, 0.0625, Fraction(3, 65536)):
        assert units_to_strides(torch.tensor([stride_to_units(stride)])).item() == float(stride)
    with pytest.raises(ConfigError, match="nearest"):
        stride_to_units(0.1)


@pytest.mark.parametrize(("version", "stride"), [("v2pe", 1), ("v2pe_fix", None), ("v2pe_fix", 0), ("default", -1)])
def test_version_and_stride_are_checked(version, stride):
    with pytest.raises(ConfigError):
        check_stride(version, stride)
