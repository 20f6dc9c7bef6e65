"""Packing, padding, caching, memory and checkpoints of the chat model."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from internvl.model.configuration_internvl_chat import InternLM2Config, InternVLChatConfig
from internvl.model.errors import ConfigError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import register_auto_classes
from internvl.model.v2pe import stride_to_units
from internvl.model.visual_features import merge_visual_features

from .tiny import VISUAL, document, tiny_config, tiny_model

NEVER = [VISUAL, 2]  # a random model would also generate visual tokens and the end of text
VERSIONS = [("default", None), ("v2pe_fix", 4), ("v2pe_fix", 1), ("v2pe_fix", 1 / 16)]


@pytest.mark.parametrize(("version", "stride"), VERSIONS)
def test_packed_row_equals_separate_documents(version, stride):
    """Also past max_position_embeddings (64), where `default` positions get one NTK base per document."""
    model = tiny_model()
    documents = [document(0, tiles=(9, 9)), document(1, tiles=(1,)), document(2, tiles=(), text=3)]
    kwargs = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
    lengths = [len(ids) for ids, _ in documents]
    assert lengths[0] > 64 > lengths[1]
    packed = model(
        input_ids=torch.cat([ids for ids, _ in documents]).unsqueeze(0),
        pixel_values=torch.cat([pixels for _, pixels in documents]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        **kwargs,
    ).logits[0]
    for row, (ids, pixels) in zip(packed.split(lengths), documents, strict=True):
        alone = model(input_ids=ids.unsqueeze(0), pixel_values=pixels, **kwargs).logits[0]
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("version", "stride"), VERSIONS)
def test_cached_decode_equals_the_uncached_forward(version, stride):
    """Greedy tokens are the argmax of one forward over the final sequence (its length decides the NTK base)."""
    model = tiny_model()
    ids, pixels = document(3, tiles=(6, 8))
    kwargs = {"pixel_values": pixels, "rope_pos_id_version": version, "rope_pos_id_stride": stride}
    new = model.generate(input_ids=ids.unsqueeze(0), max_new_tokens=6, do_sample=False, suppress_tokens=NEVER, **kwargs)
    whole = torch.cat([ids.unsqueeze(0), new], dim=1)
    logits = model(input_ids=whole, **kwargs).logits
    logits[..., NEVER] = -torch.inf
    assert new.shape == (1, 6)
    assert logits[0, len(ids) - 1 : -1].argmax(-1).tolist() == new[0].tolist()


@pytest.mark.parametrize(("version", "stride"), VERSIONS)
def test_left_padded_batches_answer_like_single_prompts(version, stride):
    model = tiny_model()
    short, long = document(4, tiles=(1,)), document(5, tiles=(2, 9))
    kwargs = {
        "rope_pos_id_version": version,
        "rope_pos_id_stride": stride,
        "max_new_tokens": 5,
        "do_sample": False,
        "suppress_tokens": NEVER,
    }
    pad = len(long[0]) - len(short[0])
    ids = torch.stack([torch.nn.functional.pad(short[0], (pad, 0)), long[0]])
    mask = torch.ones_like(ids)
    mask[0, :pad] = 0
    both = model.generate(input_ids=ids, attention_mask=mask, pixel_values=torch.cat([short[1], long[1]]), **kwargs)
    for row, (prompt, pixels) in zip(both, (short, long), strict=True):
        alone = model.generate(input_ids=prompt.unsqueeze(0), pixel_values=pixels, **kwargs)
        assert row.tolist() == alone[0].tolist()


def test_generated_tokens_sit_on_whole_positions_behind_an_image():
    """A prompt that ends inside an image: the first new token sits at ceil(last) + 1."""
    model = tiny_model()
    seen = []
    model.language_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    ids, pixels = document(6, tiles=(1,))
    ids = ids[: (ids == VISUAL).nonzero().max() + 1]
    model.generate(
        input_ids=ids.unsqueeze(0),
        pixel_values=pixels,
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=2.5,
        max_new_tokens=3,
        do_sample=False,
        suppress_tokens=NEVER,
    )
    last = seen[0][0, -1].item()
    assert last == 5 + 2.5
    assert [positions[0, -1].item() for positions in seen[1:]] == [9.0, 10.0]


def test_stride_equal_to_tokens_per_tile_is_default_below_the_trained_length():
    model = tiny_model()
    ids, pixels = document(7)
    default = model(input_ids=ids.unsqueeze(0), pixel_values=pixels, rope_pos_id_version="default").logits
    fixed = model(
        input_ids=ids.unsqueeze(0), pixel_values=pixels, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=4
    ).logits
    torch.testing.assert_close(default, fixed, rtol=1e-6, atol=1e-6)


def test_batch_strides_mean_the_same_as_natural_ones():
    model = tiny_model()
    ids, pixels = document(8, tiles=(1, 2))
    units = torch.tensor([stride_to_units(0.5)] * 2)
    kwargs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels}
    carried = model(**kwargs, image_strides=units, rope_pos_id_version="v2pe_rnd").logits
    asked = model(**kwargs, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=0.5).logits
    assert torch.equal(carried, asked)
    with pytest.raises(ConfigError, match="carries strides"):
        model(**kwargs, image_strides=units, rope_pos_id_version="default")


def test_one_long_sample_leaves_no_trace_in_the_next():
    model = tiny_model()
    short = document(9, tiles=(1,))
    kwargs = {"input_ids": short[0].unsqueeze(0), "pixel_values": short[1], "rope_pos_id_version": "default"}
    before = model(**kwargs).logits
    long = document(10, tiles=(40,))
    model(input_ids=long[0].unsqueeze(0), pixel_values=long[1], rope_pos_id_version="default")
    assert torch.equal(before, model(**kwargs).logits)


def test_count_mismatch_between_text_and_images_raises():
    model = tiny_model()
    ids, pixels = document(11, tiles=(1, 2))
    with pytest.raises(ValueError, match="12 visual tokens but the images give 8"):
        model(input_ids=ids.unsqueeze(0), pixel_values=pixels[:2])
    with pytest.raises(ValueError, match="12 visual tokens but the images give 0"):
        model(input_ids=ids.unsqueeze(0))
    with pytest.raises(ValueError, match="features"):
        merge_visual_features(torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4, 2))


def test_image_flags_leave_tiles_out():
    model = tiny_model()
    ids, pixels = document(12, tiles=(2,))
    padded = torch.cat([pixels, torch.ones_like(pixels[:1])])
    flags = torch.tensor([1, 1, 0])
    flagged = model(input_ids=ids.unsqueeze(0), pixel_values=padded, image_flags=flags).logits
    assert torch.equal(flagged, model(input_ids=ids.unsqueeze(0), pixel_values=pixels).logits)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"rope_pos_id_version": "v2pe"},
        {"rope_pos_id_version": "v2pe_fix"},
        {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0},
        {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": -4},
        {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": float("inf")},
        {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": float("nan")},
    ],
)
def test_wrong_position_arguments_raise(kwargs):
    ids, pixels = document(13)
    with pytest.raises(ConfigError):
        tiny_model()(input_ids=ids.unsqueeze(0), pixel_values=pixels, **kwargs)


class LargestTensor(TorchDispatchMode):
    """Records the element counts of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.sizes.add(tuple(value.shape))
        return out


def test_training_step_makes_no_whole_row_logits_and_no_square_mask():
    model = tiny_model(vocab_size=4096).train()
    documents = [document(i, tiles=(4, 4), text=40) for i in range(3)]
    ids = torch.cat([ids for ids, _ in documents]).unsqueeze(0)
    labels = torch.where(torch.arange(ids.shape[1]) % 40 == 0, ids, -100)
    length = ids.shape[1]
    with LargestTensor() as record:
        out = model(
            input_ids=ids,
            labels=labels,
            pixel_values=torch.cat([pixels for _, pixels in documents]),
            cu_seqlens=torch.tensor([0, *[len(d[0]) for d in documents]]).cumsum(0),
            rope_pos_id_version="v2pe_fix",
            rope_pos_id_stride=1,
        )
        out.loss.backward()
    assert out.logits is None
    assert max(torch.Size(size).numel() for size in record.sizes) < length * min(length, 4096)
    supervised = int((labels[:, 1:] != -100).sum())
    assert any(size == (supervised, 4096) for size in record.sizes), "the loss's own logits were not seen"
    assert not any(4096 in size and length in size for size in record.sizes)


def test_prefill_makes_the_last_logits_only():
    model = tiny_model(vocab_size=4096)
    ids, pixels = document(14, tiles=(8,), text=60)
    with LargestTensor() as record:
        model.generate(input_ids=ids.unsqueeze(0), pixel_values=pixels, max_new_tokens=2, do_sample=False)
    assert any(size[-1:] == (4096,) for size in record.sizes if size)
    assert not any(len(ids) in size and 4096 in size for size in record.sizes)
    assert not any(size.count(len(ids)) > 1 for size in record.sizes)


def test_rows_without_images_still_train_the_vision_tower():
    model = tiny_model().train()
    ids, _ = document(15, tiles=())
    model(input_ids=ids.unsqueeze(0), labels=ids.unsqueeze(0)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_saved_folder_loads_equal_and_carries_the_image_token(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = InternVLChatModel.from_pretrained(tmp_path)
    assert again.img_context_token_id == VISUAL
    ids, pixels = document(16)
    assert torch.equal(
        model(input_ids=ids.unsqueeze(0), pixel_values=pixels).logits,
        again(input_ids=ids.unsqueeze(0), pixel_values=pixels).logits,
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert config["auto_map"]["AutoModel"] == "modeling_internvl_chat.InternVLChatModel"


def test_auto_classes_load_a_saved_folder(tmp_path):
    from transformers import AutoConfig, AutoModel

    tiny_model().save_pretrained(tmp_path)
    register_auto_classes()
    register_auto_classes()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), InternVLChatConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), InternVLChatModel)


def test_the_model_cards_line_loads_a_saved_folder_without_this_package(tmp_path):
    """In a process that has torch and transformers only; quantisation is refused there as well."""
    import subprocess
    import sys

    tiny_model().save_pretrained(tmp_path / "checkpoint")
    code = (
        "import sys; sys.modules |= dict.fromkeys(['internvl', 'einops', 'jaxtyping', 'peft', 'deepspeed'])\n"
        "import torch; from transformers import AutoModel\n"
        "card = dict(torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, use_flash_attn=True, trust_remote_code=True)\n"
        f"folder = {str(tmp_path / 'checkpoint')!r}\n"
        "model = AutoModel.from_pretrained(folder, **card).eval()\n"
        "print(type(model).__module__, model.dtype)\n"
        "AutoModel.from_pretrained(folder, load_in_8bit=False, **card)\n"
        "try: AutoModel.from_pretrained(folder, load_in_8bit=True, **card)\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "transformers_modules" in done.stdout
    assert "torch.bfloat16\nload_in_8bit is not supported" in done.stdout


def test_configs_that_older_code_saved_load():
    """The rope type `v2pe` that training once wrote, and fields that describe a run."""
    config = InternLM2Config(rope_scaling={"type": "v2pe", "factor": 1.0}, attn_implementation="flash_attention_2")
    assert config.rope_scaling is None
    with pytest.raises(ConfigError, match="rope_scaling"):
        InternLM2Config(rope_scaling={"type": "su", "factor": 1.0})
    fields = tiny_config().to_dict() | {"attn_type": "ring", "group_list": None, "chunk_num": 8}
    assert not hasattr(InternVLChatConfig(**fields), "attn_type")
