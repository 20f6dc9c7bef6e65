"""Every decoder family: ordinary positions are transformers' own, V2PE, packing and caching hold for all of them."""

import pytest
import torch
import transformers

from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.errors import ConfigError
from internvl.model.modeling_internvl_chat import InternVLChatModel

from .tiny import VISUAL, document, tiny_config

FAMILIES = {
    "LlamaForCausalLM": {"rope_theta": 10000.0},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True},
    "Qwen3ForCausalLM": {"head_dim": 8},
    "Phi3ForCausalLM": {"pad_token_id": 0},
    "InternLM2ForCausalLM": {"bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
}
ROPES = {
    "LlamaForCausalLM": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "Phi3ForCausalLM": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.2, 1.5, 2.0],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}
NEVER = [VISUAL, 2]


def build(family, **fields):
    llm = {
        "architectures": [family],
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        **FAMILIES[family],
        **fields,
    }
    torch.manual_seed(0)
    base = tiny_config()
    config = InternVLChatConfig(
        vision_config=base.vision_config,
        llm_config=llm,
        ps_version="v2",
        template="internlm2-chat",
        img_context_token_id=VISUAL,
    )
    return InternVLChatModel(config).eval()


def native_twin(model):
    """transformers' own decoder with the same weights."""
    decoder = model.language_model
    twin = getattr(transformers, type(decoder).__name__)(decoder.config.__class__(**decoder.config.to_dict())).eval()
    twin.set_attn_implementation("eager")
    state = {key.replace("rotary_emb.native", "rotary_emb"): value for key, value in decoder.state_dict().items()}
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("rope", ["plain", "trained"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "InternLM2ForCausalLM"])
def test_default_positions_equal_transformers_own_class(family, rope):
    fields = {"rope_parameters": ROPES[family]} if rope == "trained" and family in ROPES else {}
    model = build(family, **fields)
    ids, _ = document(0, tiles=(), text=40)
    ours = model(input_ids=ids.unsqueeze(0), rope_pos_id_version="default").logits
    theirs = native_twin(model)(input_ids=ids.unsqueeze(0)).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    fixed = model(input_ids=ids.unsqueeze(0), rope_pos_id_version="v2pe_fix", rope_pos_id_stride=1).logits
    torch.testing.assert_close(fixed, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_stride_equal_to_tokens_per_tile_is_default(family):
    model = build(family)
    ids, pixels = document(1)
    kwargs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels}
    default = model(**kwargs, rope_pos_id_version="default").logits
    fixed = model(**kwargs, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=4).logits
    small = model(**kwargs, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=1 / 4).logits
    torch.testing.assert_close(default, fixed, rtol=1e-4, atol=1e-4)
    assert (default - small).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("version", "stride"), [("default", None), ("v2pe_fix", 0.5)])
def test_packed_row_equals_separate_documents(family, version, stride):
    model = build(family)
    documents = [document(2, tiles=(3, 1)), document(3, tiles=(2,)), document(4, tiles=(), text=1)]
    lengths = [len(ids) for ids, _ in documents]
    kwargs = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
    packed = model(
        input_ids=torch.cat([ids for ids, _ in documents]).unsqueeze(0),
        pixel_values=torch.cat([pixels for _, pixels in documents]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
        **kwargs,
    ).logits[0]
    for row, (ids, pixels) in zip(packed.split(lengths), documents, strict=True):
        alone = model(input_ids=ids.unsqueeze(0), pixel_values=pixels, **kwargs).logits[0]
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("version", "stride"), [("default", None), ("v2pe_fix", 0.5)])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_cached_decode_equals_the_uncached_forward(family, version, stride, num_beams):
    """Two prompts of unequal length and image count, padded on the left."""
    model = build(family)
    prompts = [document(5, tiles=(1,)), document(6, tiles=(3, 2))]
    width = max(len(ids) for ids, _ in prompts)
    ids = torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids, _ in prompts])
    mask = torch.stack([torch.arange(width) >= width - len(ids) for ids, _ in prompts]).long()
    kwargs = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
    new = model.generate(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=torch.cat([pixels for _, pixels in prompts]),
        max_new_tokens=5,
        do_sample=False,
        num_beams=num_beams,
        suppress_tokens=NEVER,
        **kwargs,
    )
    for answer, (prompt, pixels) in zip(new, prompts, strict=True):
        if num_beams > 1:
            alone = model.generate(
                input_ids=prompt.unsqueeze(0),
                pixel_values=pixels,
                max_new_tokens=5,
                do_sample=False,
                num_beams=num_beams,
                suppress_tokens=NEVER,
                **kwargs,
            )
            assert answer.tolist() == alone[0].tolist()
            continue
        whole = torch.cat([prompt, answer]).unsqueeze(0)
        logits = model(input_ids=whole, pixel_values=pixels, **kwargs).logits[0]
        logits[:, NEVER] = -torch.inf
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_training_reaches_every_parameter(family):
    model = build(family).train()
    ids, pixels = document(7)
    out = model(input_ids=ids.unsqueeze(0), pixel_values=pixels, labels=ids.unsqueeze(0), rope_pos_id_version="default")
    out.loss.backward()
    assert out.logits is None
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folder_loads_equal(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path)
    again, report = InternVLChatModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids, pixels = document(8)
    kwargs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels, "rope_pos_id_version": "v2pe_fix"}
    assert torch.equal(model(**kwargs, rope_pos_id_stride=1).logits, again(**kwargs, rope_pos_id_stride=1).logits)


def test_bf16_decoders_take_float32_tables():
    model = build("Qwen2ForCausalLM").to(torch.bfloat16)
    ids, pixels = document(9)
    out = model(
        input_ids=ids.unsqueeze(0),
        pixel_values=pixels.bfloat16(),
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=0.5,
    )
    assert torch.isfinite(out.logits).all()


def test_unknown_architectures_and_windows_are_refused():
    with pytest.raises(ConfigError, match="GPT2LMHeadModel"):
        InternVLChatConfig(llm_config={"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(ConfigError, match="sliding_window"):
        build("Phi3ForCausalLM", sliding_window=16)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("version", "stride"), [("default", None), ("v2pe_fix", 0.5)])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunked_prefill_answers_the_same(family, version, stride, chunk):
    """Two prompts, one padded on the left; InternLM2 also past the length where its NTK base changes."""
    model = build(family, **({"max_position_embeddings": 32} if family == "InternLM2ForCausalLM" else {}))
    prompts = [document(10, tiles=(1,)), document(11, tiles=(3, 2))]
    width = max(len(ids) for ids, _ in prompts)
    kwargs = {
        "input_ids": torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids, _ in prompts]),
        "attention_mask": torch.stack([torch.arange(width) >= width - len(ids) for ids, _ in prompts]).long(),
        "pixel_values": torch.cat([pixels for _, pixels in prompts]),
        "max_new_tokens": 4,
        "do_sample": False,
        "suppress_tokens": NEVER,
        "rope_pos_id_version": version,
        "rope_pos_id_stride": stride,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    whole, chunked = model.generate(**kwargs), model.generate(**kwargs, prefill_chunk_size=chunk)
    assert torch.equal(whole.sequences, chunked.sequences)
    torch.testing.assert_close(torch.stack(chunked.logits), torch.stack(whole.logits), rtol=1e-4, atol=1e-4)
