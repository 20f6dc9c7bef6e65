"""Our model against numbers that the public model code produced from the same weights (tests/parity/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.v2pe import build_position_ids

PARITY = Path(__file__).parents[1] / "parity"
CASES = json.loads((PARITY / "cases.json").read_text())
TOLERANCE = 2e-5  # float32 rounding of logits of magnitude 1..10


@pytest.fixture(scope="module")
def tensors():
    return load_file(PARITY / "io.safetensors")


@pytest.fixture(scope="module")
def model():
    model = InternVLChatModel.from_pretrained(PARITY)
    model.img_context_token_id = CASES["img_context_token_id"]
    return model


def version_of(name):
    case = CASES["cases"][name]
    return {key: case[key] for key in ("rope_pos_id_version", "rope_pos_id_stride")}


def test_features_equal_the_public_code(model, tensors):
    features = model.extract_feature(tensors["pixel_values"])
    torch.testing.assert_close(features, tensors["vit_embeds"], rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES["cases"])
def test_positions_equal_the_public_code(name, tensors):
    got = build_position_ids(
        tensors["input_ids"],
        image_token_id=CASES["img_context_token_id"],
        num_image_token=CASES["num_image_token"],
        strides=CASES["cases"][name]["rope_pos_id_stride"],
    )
    assert got.dtype == torch.float64
    assert torch.equal(got, tensors[f"{name}.position_ids"].to(torch.float64))


@pytest.mark.parametrize("name", CASES["cases"])
def test_logits_loss_and_gradients_equal_the_public_code(name, model, tensors):
    model.zero_grad()
    inputs = {key: tensors[key] for key in ("input_ids", "pixel_values", "image_flags", "labels", "loss_weight")}
    out = model(**inputs, **version_of(name))
    out.loss.backward()
    torch.testing.assert_close(out.logits, tensors[f"{name}.logits"], rtol=1e-5, atol=TOLERANCE)
    assert out.loss.item() == pytest.approx(CASES["cases"][name]["loss"], rel=1e-6)
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    assert norms == pytest.approx(CASES["cases"][name]["grad_norms"], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES["cases"] if name != "default"])
def test_greedy_tokens_equal_the_public_code(name, model, tensors):
    """Without `default`: there the public decode counted the cache twice in the NTK rule."""
    tokens = model.generate(
        input_ids=tensors["input_ids"],
        pixel_values=tensors["pixel_values"],
        max_new_tokens=8,
        do_sample=False,
        **version_of(name),
    )
    assert tokens.tolist() == CASES["cases"][name]["greedy_new_tokens"]
