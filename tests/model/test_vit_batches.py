"""The vision tower in micro-batches: the same features and gradients, less memory."""

import pytest
import torch

from internvl.model.errors import ConfigError

from .tiny import document, tiny_model

PIXELS = document(0, tiles=(3, 4))[1]


@pytest.fixture
def model():
    model = tiny_model().train()
    torch.manual_seed(1)
    model.loss_weight = torch.randn(7, 4, 32)
    return model


def features_and_gradients(model, *, vit_batch_size, pixels=PIXELS, **kwargs):
    model.zero_grad()
    model.vit_batch_size = vit_batch_size
    features = model.extract_feature(pixels, **kwargs)
    (features * model.loss_weight[: len(pixels)]).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and "language" not in name}
    return features.detach(), grads


def count_tower_runs(model):
    sizes = []
    model.vision_model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("checkpointing", ["off", "on"])
@pytest.mark.parametrize("vit_batch_size", [1, 3, 7, 100])
def test_micro_batches_change_nothing(model, vit_batch_size, checkpointing):
    expected = features_and_gradients(model, vit_batch_size=None)
    if checkpointing == "on":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    got = features_and_gradients(model, vit_batch_size=vit_batch_size)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert any(grad.abs().max() > 0 for name, grad in got[1].items() if "vision" in name)


def test_tower_never_sees_more_tiles_and_is_recomputed(model):
    sizes = count_tower_runs(model)
    features_and_gradients(model, vit_batch_size=3)
    assert sorted(sizes) == [1, 1, 3, 3, 3, 3]


def test_nothing_is_recomputed_without_gradients(model):
    sizes = count_tower_runs(model)
    model.vit_batch_size = 3
    with torch.no_grad():
        features = model.extract_feature(PIXELS)
    assert sizes == [3, 3, 1]
    model.vit_batch_size = None
    torch.testing.assert_close(features, model.extract_feature(PIXELS).detach())


def test_only_tiles_are_kept_for_the_backward_pass(model):
    """What autograd saves: 7 tiles of 3 x 28 x 28 against every activation of every layer."""

    def saved_bytes(vit_batch_size):
        model.vit_batch_size = vit_batch_size
        storages = {}
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(tensor):
            if tensor.untyped_storage().data_ptr() not in parameters:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = model.extract_feature(PIXELS)
        assert features.requires_grad
        return sum(storages.values())

    assert saved_bytes(3) <= PIXELS.nbytes
    assert saved_bytes(None) > 4 * PIXELS.nbytes


def test_frozen_tower_runs_once_and_the_projector_learns(model):
    model.vision_model.requires_grad_(False)
    expected = features_and_gradients(model, vit_batch_size=None)
    sizes = count_tower_runs(model)
    got = features_and_gradients(model, vit_batch_size=3)
    assert sizes == [3, 3, 1]
    assert {name.split(".")[0] for name in got[1]} == {"mlp1"}
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_dropped_paths_are_the_same_in_the_recomputation(model):
    """Gradients of recomputed micro-batches equal those of micro-batches whose activations were kept."""
    for layer in model.vision_model.encoder.layers:
        layer.drop_path1.rate = layer.drop_path2.rate = 0.5
    torch.manual_seed(5)
    got = features_and_gradients(model, vit_batch_size=3)
    torch.manual_seed(5)
    model.zero_grad()
    model.vit_batch_size = None
    features = torch.cat([model.extract_feature(tiles) for tiles in PIXELS.split(3)])
    (features * model.loss_weight).sum().backward()
    torch.testing.assert_close(got[0], features.detach())
    for name, grad in got[1].items():
        torch.testing.assert_close(grad, model.get_parameter(name).grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vit_batch_size", [None, 2])
def test_zero_tiles_still_lead_a_gradient_to_the_tower(model, vit_batch_size):
    features, grads = features_and_gradients(model, vit_batch_size=vit_batch_size, pixels=PIXELS[:0])
    assert features.shape == (0, 4, 32)
    assert all(grad is not None and not grad.any() for grad in grads.values())


def test_blank_batches_keep_ranks_in_step(model):
    expected = features_and_gradients(model, vit_batch_size=3)
    sizes = count_tower_runs(model)
    got = features_and_gradients(model, vit_batch_size=3, num_batches=5)
    assert sizes[:5] == [3, 3, 1, 1, 1]
    assert len(sizes) == 10
    torch.testing.assert_close(got, expected)


def test_size_must_be_positive(model):
    model.vit_batch_size = 0
    with pytest.raises(ConfigError, match="vit_batch_size must be a positive number of tiles, got 0"):
        model.extract_feature(PIXELS)
