"""Memory options change neither results nor gradients, and do what they promise."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from internvl.train.memory_savings import tile_mlps
from tests.model.tiny import document, tiny_model


def run(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids, rope_pos_id_version="default").loss.backward()
    return {name: p.grad.clone() for name, p in model.language_model.named_parameters() if p.grad is not None}


def widest_saved(model, ids) -> int:
    """Entries of the largest tensor with the MLP's width that the backward pass keeps."""
    sizes = [0]
    width = model.config.llm_config.intermediate_size

    def note(tensor):
        if tensor.dim() == 3 and tensor.shape[-1] == width:
            sizes.append(tensor.shape[1])
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(input_ids=ids, labels=ids, rope_pos_id_version="default")
    return max(sizes)


@pytest.mark.parametrize("num_tokens", [1, 7, 64])
def test_tiled_mlps_equal_whole_ones(num_tokens):
    model = tiny_model().train()
    ids, _ = document(0, tiles=(), text=30)
    ids = ids.unsqueeze(0)
    expected, names = run(model, ids), list(model.state_dict())
    assert widest_saved(model, ids) == ids.shape[1]
    assert tile_mlps(model.language_model, num_tokens=num_tokens) == model.config.llm_config.num_hidden_layers
    for name, grad in run(model, ids).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)
    assert list(model.state_dict()) == names
    if num_tokens < ids.shape[1]:
        assert widest_saved(model, ids) == 0
