"""The naive split of layers over devices. Two real devices are not at hand: placement is seen with `meta`."""

import pytest
import torch

from internvl.errors import ConfigError
from internvl.infer.layer_split import build_device_map, split_over_devices
from tests.model.test_language_models import FAMILIES, NEVER, build
from tests.model.tiny import document


def devices_of(device_map, part):
    return [str(device) for name, device in device_map.items() if part in name]


def test_ends_and_layers_are_where_they_belong():
    model = build("InternLM2ForCausalLM", num_hidden_layers=5)
    found = build_device_map(model, ["cuda:3", "cuda:4", "cuda:7"])
    assert devices_of(found, "layers.") == ["cuda:3", "cuda:3", "cuda:4", "cuda:4", "cuda:7"]
    for name in ("vision_model", "mlp1", "language_model.model.tok_embeddings"):
        assert devices_of(found, name) == ["cuda:3"]
    for name in ("language_model.model.norm", "language_model.output"):
        assert devices_of(found, name) == ["cuda:7"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_and_buffer_has_one_device(family):
    model = build(family)
    found = build_device_map(model, ["cuda:0", "cuda:1"])
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        assert sum(name.startswith(f"{part}.") for part in found) == 1, name


@pytest.mark.parametrize("devices", [[], ["cpu"] * 3])
def test_numbers_of_devices_that_do_not_fit_are_refused(devices):
    with pytest.raises(ConfigError, match="2 layers cannot be split over"):
        build_device_map(build("InternLM2ForCausalLM"), devices)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_stay_the_same(family):
    model = build(family)
    ids, pixels = document(3)
    options = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels, "max_new_tokens": 4, "suppress_tokens": NEVER}
    expected = model.generate(**options, do_sample=False)
    split_over_devices(model, ["cpu", "cpu"])
    for chunk in (None, 7):
        assert torch.equal(model.generate(**options, do_sample=False, prefill_chunk_size=chunk), expected)


@pytest.mark.parametrize("family", ["InternLM2ForCausalLM", "Qwen2ForCausalLM"])
def test_weights_move(family):
    """Qwen2's output layer shares its weights with the embeddings and stays with them."""
    model = build(family)
    split_over_devices(model, ["cpu", "meta"])
    layers = model.language_model.model.layers
    assert {parameter.device.type for parameter in layers[0].parameters()} == {"cpu"}
    assert {parameter.device.type for parameter in layers[1].parameters()} == {"meta"}
    assert model.get_output_embeddings().weight.device.type == ("cpu" if family == "Qwen2ForCausalLM" else "meta")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_stay_the_same_on_two_gpus(family):
    model = build(family)
    ids, pixels = document(3)
    options = {"max_new_tokens": 4, "suppress_tokens": NEVER, "do_sample": False}
    expected = model.generate(input_ids=ids.unsqueeze(0), pixel_values=pixels, **options)
    split_over_devices(model, ["cuda:0", "cuda:1"])
    found = model.generate(input_ids=ids.unsqueeze(0).cuda(0), pixel_values=pixels.cuda(0), **options)
    assert torch.equal(found.cpu(), expected)
