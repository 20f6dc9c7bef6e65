"""The vision tower: positions for other tile sizes, hidden state, stochastic depth, and the tokens that leave it."""

import numpy as np
import pytest
import torch

from internvl.model.configuration_internvl_chat import InternVisionConfig, InternVLChatConfig
from internvl.model.constants import PIXEL_STATISTICS
from internvl.model.errors import ConfigError
from internvl.model.modeling_intern_vit import DropPath, InternVisionModel, resize_position_embedding
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.visual_features import normalize_tiles

from .tiny import tiny_config, tiny_model


def tower(**fields):
    torch.manual_seed(0)
    return InternVisionModel(InternVisionConfig(**{**tiny_config().vision_config.to_dict(), **fields})).eval()


def test_positions_of_another_grid_are_resized_and_those_of_the_class_token_kept():
    """A position table that rises along the rows still does, and is the same along the columns; its mean stays."""
    rows = torch.arange(8.0).repeat_interleave(8)
    table = torch.cat([torch.tensor([100.0]), rows]).view(1, 65, 1)
    resized = resize_position_embedding(table, (16, 4))
    assert resized.shape == (1, 1 + 64, 1)
    assert resized[0, 0, 0] == 100
    grid = resized[0, 1:, 0].view(16, 4)
    torch.testing.assert_close(grid, grid[:, :1].expand(-1, 4))
    assert (grid[2:14, 0].diff() > 0.3).all()
    assert grid.mean().item() == pytest.approx(3.5, abs=1e-5)
    assert torch.equal(resize_position_embedding(table, (8, 8)), table)


@pytest.mark.parametrize("size", [14, 56])
def test_resizing_once_computes_what_resizing_in_every_forward_does(size):
    model, tiles = tower(), torch.randn(2, 3, size, size)
    expected = model(tiles)
    assert expected.shape == (2, 1 + (size // 7) ** 2, 16)
    model.resize_pos_embeddings(size)
    assert model.config.image_size == size
    assert model.embeddings.position_embedding.shape[1] == 1 + (size // 7) ** 2
    torch.testing.assert_close(model(tiles), expected)


@pytest.mark.parametrize(("size", "ratio", "expected"), [(28, 0.5, 4), (56, 0.5, 16), (56, 0.25, 4), (28, 1.0, 16)])
def test_tokens_per_tile_follow_size_and_ratio(size, ratio, expected):
    base = tiny_config()
    config = InternVLChatConfig(
        vision_config={**base.vision_config.to_dict(), "image_size": size},
        llm_config=base.llm_config.to_dict(),
        force_image_size=size,
        downsample_ratio=ratio,
        ps_version="v2",
    )
    model = InternVLChatModel(config).eval()
    assert model.num_image_token == expected
    assert model.extract_feature(torch.randn(3, 3, size, size)).shape == (3, expected, 32)


def test_released_sizes_have_256_tokens_per_tile():
    config = InternVLChatConfig(vision_config={"image_size": 448, "patch_size": 14}, force_image_size=448)
    assert config.num_image_token == 256


def test_the_shuffle_version_reorders_the_tokens_of_a_tile():
    model, tiles = tiny_model(), torch.randn(2, 3, 28, 28)
    rows = model.extract_feature(tiles)
    model.config.ps_version = "v1"
    assert torch.equal(model.extract_feature(tiles), rows[:, [0, 2, 1, 3]])
    with pytest.raises(ConfigError, match="ps_version must be 'v1' or 'v2', got 'v3'"):
        InternVLChatConfig(ps_version="v3")


def test_the_selected_layer_is_the_hidden_state_behind_it():
    model, tiles = tower(), torch.randn(2, 3, 28, 28)
    states = [model.embeddings(tiles)]
    for layer in model.encoder.layers:
        states.append(layer(states[-1]))
    for index in (0, 1, 2, -1, -2, -3):
        assert torch.equal(model(tiles, select_layer=index), states[index])
    for index in (3, -4):
        with pytest.raises(ConfigError, match=f"select_layer {index} is outside the 2 layers"):
            model(tiles, select_layer=index)


def test_the_chat_model_takes_the_layer_of_its_config():
    model, tiles = tiny_model(), torch.randn(1, 3, 28, 28)
    last = model.extract_feature(tiles)
    model.config.select_layer = -2
    states = model.vision_model(tiles, select_layer=1)
    assert torch.equal(model.extract_feature(tiles), model._project(states[:, 1:]))
    assert not torch.allclose(model.extract_feature(tiles), last)


def test_stochastic_depth_rises_over_the_layers_and_stops_in_evaluation():
    model, tiles = tower(num_hidden_layers=3, drop_path_rate=0.4), torch.randn(4, 3, 28, 28)
    rates = [layer.drop_path1.rate for layer in model.encoder.layers]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    assert [layer.drop_path2.rate for layer in model.encoder.layers] == rates
    assert torch.equal(model(tiles), model(tiles))
    torch.testing.assert_close(model(tiles), tower(num_hidden_layers=3)(tiles))
    model.train()
    assert not torch.equal(model(tiles), model(tiles))


def test_stochastic_depth_drops_whole_tiles_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    out = drop(torch.ones(4000, 3, 2))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out.amin(dim=(1, 2)), out.amax(dim=(1, 2)))
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("kind", PIXEL_STATISTICS)
def test_pixels_are_normalised_as_the_public_code_does_step_by_step(kind):
    """numpy's float32 arithmetic, bit for bit, for every value and colour."""
    levels = torch.arange(256, dtype=torch.uint8)
    tiles = torch.stack([levels, levels.flip(0), levels.roll(7)]).view(1, 3, 16, 16)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None, None] for values in PIXEL_STATISTICS[kind])
    expected = (tiles[0].numpy() / np.float32(255) - mean) / std
    assert expected.dtype == np.float32
    assert np.array_equal(normalize_tiles(tiles, kind)[0].numpy(), expected)


@pytest.mark.parametrize("kind", ["imagenet", "siglip"])
def test_pixels_give_the_features_of_normalised_tiles(kind):
    model = tiny_model()
    model.config.normalize_type = kind
    pixels = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.extract_feature(pixels), model.extract_feature(normalize_tiles(pixels, kind)))


def test_unknown_statistics_of_pixels_are_refused():
    with pytest.raises(ConfigError, match="normalize_type must be one of"):
        InternVLChatConfig(normalize_type="imagenette")
