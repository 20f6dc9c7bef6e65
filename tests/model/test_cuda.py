"""The model on a CUDA device: `pytest -m gpu`."""

import pytest
import torch

from .test_parity import CASES, PARITY, TOLERANCE, version_of
from .tiny import document, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", CASES["cases"])
def test_logits_and_loss_equal_the_public_code_on_cuda(name):
    from safetensors.torch import load_file

    from internvl.model.modeling_internvl_chat import InternVLChatModel

    tensors = load_file(PARITY / "io.safetensors", device="cuda")
    model = InternVLChatModel.from_pretrained(PARITY).cuda()
    model.img_context_token_id = CASES["img_context_token_id"]
    inputs = {key: tensors[key] for key in ("input_ids", "pixel_values", "image_flags", "labels", "loss_weight")}
    torch.backends.cuda.matmul.allow_tf32 = False
    out = model(**inputs, **version_of(name))
    torch.testing.assert_close(out.logits, tensors[f"{name}.logits"], rtol=1e-4, atol=10 * TOLERANCE)
    assert out.loss.item() == pytest.approx(CASES["cases"][name]["loss"], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_training_step_runs_on_cuda(dtype):
    model = tiny_model().to("cuda", dtype).train()
    documents = [document(seed, tiles=(2, 3)) for seed in range(3)]
    ids = torch.cat([ids for ids, _ in documents]).unsqueeze(0).cuda()
    loss = model(
        input_ids=ids,
        labels=ids,
        pixel_values=torch.cat([pixels for _, pixels in documents]).to("cuda", dtype),
        cu_seqlens=torch.tensor([0, *[len(d[0]) for d in documents]]).cumsum(0).cuda(),
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=0.5,
    ).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_greedy_tokens_on_cuda_equal_the_cpu():
    model = tiny_model()
    ids, pixels = document(3, tiles=(2, 2))
    kwargs = {"max_new_tokens": 6, "do_sample": False, "rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 1}
    expected = model.generate(input_ids=ids.unsqueeze(0), pixel_values=pixels, **kwargs)
    got = model.cuda().generate(input_ids=ids.unsqueeze(0).cuda(), pixel_values=pixels.cuda(), **kwargs)
    assert got.tolist() == expected.tolist()
