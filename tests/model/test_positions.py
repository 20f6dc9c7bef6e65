"""Every position scheme through the model: packed, padded, cached and uncached rows give the same."""

import pytest
import torch
from torch import Tensor

from internvl.model.errors import ConfigError
from internvl.model.positions import (
    SCHEMES,
    check_stride,
    choose_positions,
    final_lengths,
    find_scheme,
    has_axes,
    next_text,
    takes_stride,
)
from internvl.model.positions_scheme import NO_AXIS, ImageGrid, locate_tokens

from .test_language_models import build
from .tiny import VISUAL, document, tiny_model

AXES = [version for version in SCHEMES if has_axes(version)]
GRIDS = {1: ImageGrid(1, 1), 2: ImageGrid(1, 2), 3: ImageGrid(2, 1, 1), 4: ImageGrid(2, 2)}
TILES = ((1, 3), (2,), (4, 1))


OURS, THEIRS = "InternLM2ForCausalLM", "Qwen2ForCausalLM"  # a decoder of our own, and one of transformers
CASES = [(OURS, version, 1.5 if version == "v2pe_fix" else None) for version in SCHEMES]
CASES += [(OURS, "mrope", 1.5), (OURS, "videorope", 0.75)]
CASES += [(THEIRS, "mrope", None), (THEIRS, "mrope_interleaved", 1.5), (THEIRS, "hope", None)]


@pytest.fixture(scope="module")
def models():
    return {family: build(family) for family in (OURS, THEIRS)}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request, models):
    """A model, and the arguments that choose its positions."""
    family, version, stride = request.param
    return models[family], {"rope_pos_id_version": version, "rope_pos_id_stride": stride}


def images(tiles, scheme) -> dict[str, Tensor]:
    """What a batch carries with images of so many tiles."""
    carried = {"image_grids": torch.tensor([GRIDS[count] for count in tiles])}
    if scheme["rope_pos_id_version"] == "v2pe_rnd":
        carried["image_strides"] = torch.tensor([65536 * count for count in tiles])
    return carried


def test_a_packed_row_equals_its_documents(case):
    model, scheme = case
    documents = [document(seed, tiles) for seed, tiles in enumerate(TILES)]
    lengths = [len(ids) for ids, _ in documents]
    row = {
        "input_ids": torch.cat([ids for ids, _ in documents]).unsqueeze(0),
        "pixel_values": torch.cat([pixels for _, pixels in documents]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
    }
    with torch.no_grad():
        packed = model(**row, **images(sum(TILES, ()), scheme), **scheme).logits[0].split(lengths)
        for (ids, pixels), tiles, logits in zip(documents, TILES, packed, strict=True):
            alone = model(pixels, ids.unsqueeze(0), **images(tiles, scheme), **scheme).logits[0]
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}])
def test_cached_decoding_equals_whole_forward_passes(case, options):
    model, scheme = case
    ids, pixels = document(3, (3, 2))
    arguments = {"pixel_values": pixels, **images((3, 2), scheme), **scheme}
    output = model.generate(
        input_ids=ids.unsqueeze(0),
        max_new_tokens=5,
        suppress_tokens=[VISUAL],
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **arguments,
        **options,
    )
    whole = torch.cat([ids, output.sequences[0]])
    with torch.no_grad():
        logits = model(input_ids=whole.unsqueeze(0), **arguments).logits[0, len(ids) - 1 : -1]
    torch.testing.assert_close(torch.cat(output.logits), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case", [(OURS, "v2pe_fix", 1.5), (OURS, "videorope", 0.75), (THEIRS, "mrope", None)], indirect=True
)
def test_padded_prompts_and_beams_answer_as_single_ones(case):
    model, scheme = case
    prompts = [document(5, (2,), text=9), document(6, (1, 4))]
    tiles = [(2,), (1, 4)]
    width = max(len(ids) for ids, _ in prompts)
    rows = [torch.cat([torch.zeros(width - len(ids), dtype=torch.int64), ids]) for ids, _ in prompts]
    masks = [torch.arange(width) >= width - len(ids) for ids, _ in prompts]
    options = {"max_new_tokens": 4, "suppress_tokens": [VISUAL], "num_beams": 2, "do_sample": False}
    together = model.generate(
        torch.cat([pixels for _, pixels in prompts]),
        torch.stack(rows),
        torch.stack(masks).long(),
        **images((2, 1, 4), scheme),
        **scheme,
        **options,
    )
    for (ids, pixels), counts, answer in zip(prompts, tiles, together, strict=True):
        alone = model.generate(pixels, ids.unsqueeze(0), **images(counts, scheme), **scheme, **options)
        assert answer.tolist() == alone[0].tolist()


@pytest.mark.parametrize("version", SCHEMES)
def test_a_text_stands_where_it_does_on_one_axis(version):
    ids = document(1, (), text=12)[0].unsqueeze(0)
    positions = tiny_model().build_positions(ids, rope_pos_id_version=version, rope_pos_id_stride=2)
    assert (positions == torch.arange(12)).all()


@pytest.mark.parametrize("version", AXES)
def test_text_stands_on_whole_numbers_that_are_the_same_on_all_axes(version):
    ids, _ = document(1, (3, 4))
    model = tiny_model()
    for stride in (None, 0.75, 30):
        positions = model.build_positions(
            ids.unsqueeze(0),
            image_grids=torch.tensor([GRIDS[3], GRIDS[4]]),
            rope_pos_id_version=version,
            rope_pos_id_stride=stride,
        )[:, 0]
        text = positions[:, ids != VISUAL]
        assert (text == text[0]).all()
        assert (text == text.round()).all()
        assert (text.diff() >= 1).all()
        assert positions[0].diff().min() >= -4  # time goes back only where the next layer, or text, begins
        assert final_lengths(positions.unsqueeze(1), 3, version).item() == text[0, -1] + 4


@pytest.mark.parametrize("version", SCHEMES)
def test_text_after_a_prompt_that_ends_with_an_image_stands_where_a_whole_row_puts_it(version):
    ids, model = torch.tensor([[1, *[VISUAL] * 12, 1]]), tiny_model()
    for stride in (0.25, 30):
        choice = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
        positions = model.build_positions(ids, image_grids=torch.tensor([ImageGrid(1, 2, 1)]), **choice)
        assert final_lengths(positions[..., :-1], 3, version).item() == positions[..., -1].max() + 3


def test_a_stride_moves_time_within_an_image():
    ids = torch.tensor([[1, 1, *[VISUAL] * 4, 1]])
    place = {"rope_pos_id_version": "mrope", "rope_pos_id_stride": 2}
    time, rows, columns = tiny_model().build_positions(ids, **place)[:, 0].tolist()
    assert time == [0, 1, 2, 2.5, 3, 3.5, 5]
    assert rows == [0, 1, 2, 2, 3, 3, 5]
    assert columns == [0, 1, 2, 3, 2, 3, 5]


@pytest.mark.parametrize("version", AXES)
def test_every_frequency_has_an_axis_or_none(version):
    scheme = SCHEMES[version]
    for num_frequencies in (4, 8, 16, 32, 64, 128):
        axes = scheme.axes_of_channels(num_frequencies, 8)
        assert axes.shape[-1] == num_frequencies
        assert set(axes.flatten().tolist()) <= {NO_AXIS, *range(scheme.num_axes)}


def test_tokens_are_located_tile_by_tile():
    layer, rows, columns = locate_tokens(ImageGrid(1, 2, 1), side=2).tolist()
    assert layer == [0] * 8 + [1] * 4
    assert rows == [0, 0, 1, 1] * 3
    assert columns == [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1]


def test_grids_that_do_not_fit_the_images_are_refused():
    model, ids = tiny_model(), document(0, (2,))[0].unsqueeze(0)
    for grids in (None, torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 2, 0, 0], [1, 1, 0, 0]])):
        with pytest.raises(ConfigError, match="image_grids describe"):
            model.build_positions(ids, image_grids=grids, rope_pos_id_version="mrope")


def test_positions_of_another_version_are_refused():
    model, ids = tiny_model(), document(0, (1,))[0].unsqueeze(0)
    pixels = torch.zeros(1, 3, 28, 28)
    positions = model.build_positions(ids, rope_pos_id_version="mrope")
    for version, given in (("default", positions), ("mrope", positions[:2])):
        with pytest.raises(ValueError, match="axes"):
            model(pixels, ids, position_ids=given, rope_pos_id_version=version)


def test_heads_that_differ_need_a_decoder_of_our_own(models):
    ids, pixels = document(0, (1,))
    with pytest.raises(ConfigError, match="mhrope rotates heads differently"):
        models[THEIRS](pixels, ids.unsqueeze(0), rope_pos_id_version="mhrope")


def test_a_stride_is_inherited_by_its_own_version_only():
    assert choose_positions("v2pe_fix", None, "v2pe_rnd", 64) == ("v2pe_fix", 64)
    assert choose_positions("mrope", None, "mrope", 64) == ("mrope", 64)
    assert choose_positions("mrope", None, "v2pe_fix", 64) == ("mrope", None)
    assert choose_positions("v2pe_fix", None, "mrope", 64) == ("v2pe_fix", None)
    check_stride("mrope", None)
    with pytest.raises(ConfigError):
        check_stride("mrope", 0)


@pytest.mark.parametrize(
    "ask",
    [
        find_scheme,
        has_axes,
        takes_stride,
        lambda version: choose_positions(version, None, "default", 1.0),
        lambda version: next_text(torch.zeros(1, 1), version),
    ],
)
def test_an_unknown_version_is_named_wherever_it_is_asked_about(ask):
    with pytest.raises(ConfigError, match="unknown rope_pos_id_version 'v3'; expected one of default, v2pe_fix"):
        ask("v3")
