"""Scaled rotary tables against transformers' own functions and classes, whom they apply to, how they are asked for."""

import json

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from internvl.model.configuration_internvl_chat import InternLM2Config, InternVLChatConfig
from internvl.model.errors import ConfigError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.rotary import yarn_frequencies
from internvl.model.scaling import RopeScaling, apply_rope_scaling, parse_rope_scaling

from .test_language_models import FAMILIES, NEVER, ROPES, build, native_twin
from .tiny import document, tiny_config, tiny_model

NATIVE = [family for family in FAMILIES if family != "InternLM2ForCausalLM"]


@pytest.mark.parametrize(("factor", "original", "base"), [(4.0, 4096, 1e4), (2.0, 32768, 1e6), (16.0, 256, 1e4)])
def test_yarn_equals_transformers(factor, original, base):
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=int(original * factor),
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": base,
            "factor": factor,
            "original_max_position_embeddings": original,
        },
    )
    expected, expected_scale = ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu")
    frequencies, scale = yarn_frequencies(base, head_dim=64, factor=factor, original_length=original)
    torch.testing.assert_close(frequencies.float(), expected, rtol=1e-5, atol=0)
    assert scale == pytest.approx(expected_scale)


def logits(model, version, stride=None):
    ids, pixels = document(0)
    return model(
        input_ids=ids.unsqueeze(0), pixel_values=pixels, rope_pos_id_version=version, rope_pos_id_stride=stride
    ).logits


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_reaches_v2pe_only_when_asked(kind):
    plain = tiny_model(rope_scaling=None)
    ordinary = tiny_model(rope_scaling={"type": kind, "factor": 4.0})
    both = tiny_model(rope_scaling={"type": kind, "factor": 4.0, "scale_v2pe": True})
    assert torch.equal(logits(ordinary, "v2pe_fix", 2), logits(plain, "v2pe_fix", 2))
    assert not torch.allclose(logits(ordinary, "default"), logits(plain, "default"))
    assert not torch.allclose(logits(both, "v2pe_fix", 2), logits(plain, "v2pe_fix", 2))
    assert torch.equal(logits(both, "default"), logits(ordinary, "default"))


def test_linear_scaling_divides_positions():
    plain, scaled = tiny_model(rope_scaling=None), tiny_model(rope_scaling={"type": "linear", "factor": 4.0})
    ids, _ = document(1, tiles=(), text=20)
    positions = torch.arange(len(ids), dtype=torch.float64).unsqueeze(0)
    expected = plain(input_ids=ids.unsqueeze(0), position_ids=positions / 4).logits
    torch.testing.assert_close(scaled(input_ids=ids.unsqueeze(0), rope_pos_id_version="default").logits, expected)


def test_entries_that_make_no_sense_are_refused():
    for entry in (
        {"type": "dynamic", "factor": 2.0, "scale_v2pe": True},
        {"type": "yarn", "factor": 0.5},
        {"type": "yarn", "factor": 2.0, "beta_fast": 16},
    ):
        with pytest.raises(ConfigError, match="rope_scaling"):
            InternLM2Config(rope_scaling=entry)
    for entry in (
        {"type": "dynamic", "factor": 2.0, "scale_v2pe": True},
        {"rope_type": "linear"},
        {"rope_type": "ntk", "factor": 2.0},
    ):
        with pytest.raises(ConfigError, match=r"llm_config\.rope_scaling"):
            InternVLChatConfig(llm_config={"architectures": ["Qwen2ForCausalLM"], "rope_scaling": entry})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", RopeScaling("none")),
        ("linear:2", RopeScaling("linear", 2.0, scale_v2pe=True)),
        ("dynamic:2.5", RopeScaling("dynamic", 2.5)),
        ("yarn:4", RopeScaling("yarn", 4.0, scale_v2pe=True)),
        ("yarn:4:8192", RopeScaling("yarn", 4.0, 8192, scale_v2pe=True)),
        ('{"type":"yarn","factor":4,"original_max_position_embeddings":8192}', RopeScaling("yarn", 4.0, 8192, True)),
        ('{"rope_type": "linear", "factor": 2, "scale_v2pe": false}', RopeScaling("linear", 2.0)),
        ({"type": "yarn", "factor": 4}, RopeScaling("yarn", 4.0, scale_v2pe=True)),
    ],
)
def test_flags_are_read(text, expected):
    scaling = parse_rope_scaling(text)
    assert scaling == expected
    short = str(scaling)
    if not short.endswith(":default"):
        assert parse_rope_scaling(short) == scaling


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ntk:4", "'ntk:4' is not known; expected none, linear:FACTOR"),
        ("none:4", "'none:4' is not known"),
        ("yarn:4:8192:1", "is not known"),
        ("yarn", "factor is None"),
        ("yarn:four", "are no numbers"),
        ("yarn:0.5", r"factor is 0\.5 .* expected a finite number of at least 1"),
        ("yarn:inf", "factor is inf"),
        ("linear:nan", "factor is nan"),
        ("linear:2:8192", "linear takes no original_max_position_embeddings"),
        ("yarn:4:0", "original_max_position_embeddings is 0"),
        ('{"type": "yarn", "factor": "4"}', "factor is '4'"),
        ('{"type": "yarn", "factor": true}', "factor is True"),
        ('{"type": "su", "factor": 4}', "type 'su' .* expected one of none, linear, dynamic, yarn"),
        ('{"type": "yarn", "factor": 4, "scale_v2pe": 1}', "scale_v2pe is 1"),
        ('{"type": "dynamic", "factor": 4, "scale_v2pe": true}', "does not fit V2PE"),
        ('{"type": "yarn", "factor": 4, "beta_fast": 16}', "yarn takes no beta_fast"),
        ('{"type": "yarn"', "is no json object"),
        ("", "is not known"),
        ([4], "is not known"),
    ],
)
def test_flags_that_make_no_sense_are_refused(text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        parse_rope_scaling(text)
    assert "--rope_scaling" in str(raised.value)


def test_dynamic_scaling_is_for_default_positions():
    scaling = parse_rope_scaling("dynamic:2")
    scaling.check_version("default")
    for version in ("v2pe_fix", "v2pe_rnd"):
        with pytest.raises(ConfigError, match=f"{version}: dynamic NTK follows the number of tokens"):
            scaling.check_version(version)


def test_a_flag_replaces_the_scaling_of_internlm2():
    config = tiny_config().llm_config
    apply_rope_scaling(config, parse_rope_scaling("yarn:4"))
    expected = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "scale_v2pe": True}
    assert config.rope_scaling == expected
    config.max_position_embeddings = 128
    apply_rope_scaling(config, parse_rope_scaling("yarn:8"))
    assert config.rope_scaling["original_max_position_embeddings"] == 64
    assert InternLM2Config(**json.loads(json.dumps(config.to_dict()))).rope_scaling == config.rope_scaling
    apply_rope_scaling(config, parse_rope_scaling("none"))
    assert config.rope_scaling is None


def scaled(family, text, **fields):
    """A tiny chat model whose decoder got a flag, with the weights of `build(family)`."""
    plain = build(family, **fields)
    config = InternVLChatConfig(**plain.config.to_dict())
    apply_rope_scaling(config.llm_config, parse_rope_scaling(text))
    model = InternVLChatModel(config).eval()
    model.load_state_dict(plain.state_dict())
    return plain, model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["linear:4", "yarn:4:64"])
def test_scaled_v2pe_at_stride_t_equals_scaled_ordinary_positions(family, text):
    plain, model = scaled(family, text)
    ids, pixels = document(3, tiles=(2, 3), text=30)
    kwargs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels}
    ordinary = model(**kwargs, rope_pos_id_version="default").logits
    floating = model(**kwargs, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=4).logits
    torch.testing.assert_close(floating, ordinary, rtol=1e-4, atol=1e-4)
    assert (plain(**kwargs, rope_pos_id_version="default").logits - ordinary).abs().max() > 1e-2
    stride = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 1}
    assert (plain(**kwargs, **stride).logits - model(**kwargs, **stride).logits).abs().max() > 1e-2


@pytest.mark.parametrize("family", NATIVE)
@pytest.mark.parametrize("text", ["linear:4", "yarn:4:64", "dynamic:4"])
def test_scaled_ordinary_positions_are_those_of_transformers(family, text):
    """Dynamic NTK also beyond the length from which the base grows."""
    _, model = scaled(family, text, max_position_embeddings=64)
    for length in (40, 100):
        ids, _ = document(length, tiles=(), text=length)
        ours = model(input_ids=ids.unsqueeze(0), rope_pos_id_version="default").logits
        theirs = native_twin(model)(input_ids=ids.unsqueeze(0)).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", NATIVE)
def test_v2pe_stays_unscaled_without_the_flag(family):
    entry = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    ids, pixels = document(4)
    kwargs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels, "rope_pos_id_version": "v2pe_fix"}
    got = build(family, rope_parameters=entry)(**kwargs, rope_pos_id_stride=2).logits
    assert torch.equal(got, build(family)(**kwargs, rope_pos_id_stride=2).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_scaling_is_saved_with_the_model(family, tmp_path):
    _, model = scaled(family, "yarn:4:64")
    model.save_pretrained(tmp_path)
    again = InternVLChatModel.from_pretrained(tmp_path).eval()
    ids, pixels = document(5)
    kwargs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels}
    for version, stride in (("default", None), ("v2pe_fix", 1)):
        positions = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
        assert torch.equal(model(**kwargs, **positions).logits, again(**kwargs, **positions).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_none_takes_scaling_away(family):
    scaling = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    _, model = scaled(family, "none", **scaling)
    ids, _ = document(6, tiles=(), text=40)
    kwargs = {"input_ids": ids.unsqueeze(0), "rope_pos_id_version": "default"}
    plain = build(family, rope_scaling=None)
    assert torch.equal(model(**kwargs).logits, plain(**kwargs).logits)
    assert not torch.allclose(build(family, **scaling)(**kwargs).logits, plain(**kwargs).logits)


def test_bf16_models_keep_exact_frequencies():
    _, model = scaled("Qwen2ForCausalLM", "yarn:4:64")
    rotary = model.language_model.model.rotary_emb
    positions = torch.tensor([[100_000.0, 100_000.25]], dtype=torch.float64)
    expected = rotary(torch.zeros(1), positions)
    got = model.to(torch.bfloat16).language_model.model.rotary_emb(torch.zeros(1), positions)
    assert torch.equal(got[0], expected[0])
    assert not torch.equal(got[0][0, 0], got[0][0, 1])


@pytest.mark.parametrize("family", list(ROPES))
def test_trained_frequencies_are_not_replaced(family):
    config = build(family, rope_parameters=ROPES[family]).config.llm_config
    with pytest.raises(ConfigError, match=f"trained with rope type {ROPES[family]['rope_type']}.*leave the flag out"):
        apply_rope_scaling(config, parse_rope_scaling("yarn:4"))


# Frequencies that depend on the length of a sequence: dynamic NTK, longrope ----------------------------------------

BY_LENGTH = [
    ("Qwen2ForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 32}),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 32}),
    ("Phi3ForCausalLM", {"rope_parameters": ROPES["Phi3ForCausalLM"], "original_max_position_embeddings": 32}),
]
VERSIONS = [("default", None), ("v2pe_fix", 8)]


@pytest.mark.parametrize(("family", "fields"), BY_LENGTH)
@pytest.mark.parametrize(("version", "stride"), VERSIONS)
def test_documents_of_a_packed_row_have_their_own_frequencies(family, fields, version, stride):
    model = build(family, **fields)
    documents = [document(0, tiles=(9, 3)), document(1, tiles=(1,)), document(2, tiles=(), text=40)]
    lengths = [len(ids) for ids, _ in documents]
    assert lengths[1] < 32 < lengths[2] < lengths[0]
    kwargs = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
    packed = model(
        input_ids=torch.cat([ids for ids, _ in documents]).unsqueeze(0),
        pixel_values=torch.cat([pixels for _, pixels in documents]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        **kwargs,
    ).logits[0]
    for row, (ids, pixels) in zip(packed.split(lengths), documents, strict=True):
        alone = model(input_ids=ids.unsqueeze(0), pixel_values=pixels if len(pixels) else None, **kwargs).logits[0]
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "fields"), BY_LENGTH)
@pytest.mark.parametrize(("version", "stride"), VERSIONS)
def test_a_long_sample_leaves_no_trace_in_the_next(family, fields, version, stride):
    model = build(family, **fields)
    positions = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
    short, long, middle = document(9, tiles=(1,)), document(10, tiles=(40,)), document(11, tiles=(7,))

    def ask(sample):
        return model(input_ids=sample[0].unsqueeze(0), pixel_values=sample[1], **positions).logits

    before = ask(short), ask(middle)
    ask(long)
    model(input_ids=long[0].unsqueeze(0), pixel_values=long[1], rope_pos_id_version="default")
    assert torch.equal(ask(middle), before[1])
    assert torch.equal(ask(short), before[0])


@pytest.mark.parametrize(("family", "fields"), BY_LENGTH)
@pytest.mark.parametrize(("version", "stride"), VERSIONS)
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}, {"num_beams": 3}])
def test_cached_keys_have_the_frequencies_of_the_final_length(family, fields, version, stride, options):
    """Two prompts, of which the short one crosses the border while it is answered; the other is beyond it."""
    model = build(family, **fields)
    prompts = [document(5, tiles=(1,), text=11), document(6, tiles=(3, 9))]
    assert len(prompts[0][0]) < 32 < len(prompts[0][0]) + 12
    width = max(len(ids) for ids, _ in prompts)
    kwargs = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
    generation = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": NEVER, **options}
    new = model.generate(
        input_ids=torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids, _ in prompts]),
        attention_mask=torch.stack([torch.arange(width) >= width - len(ids) for ids, _ in prompts]).long(),
        pixel_values=torch.cat([pixels for _, pixels in prompts]),
        **generation,
        **kwargs,
    )
    for answer, (prompt, pixels) in zip(new, prompts, strict=True):
        if "num_beams" in options:
            alone = model.generate(input_ids=prompt.unsqueeze(0), pixel_values=pixels, **generation, **kwargs)
            assert answer.tolist() == alone[0].tolist()
            continue
        whole = torch.cat([prompt, answer]).unsqueeze(0)
        logits = model(input_ids=whole, pixel_values=pixels, **kwargs).logits[0]
        logits[:, NEVER] = -torch.inf
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer.tolist()
