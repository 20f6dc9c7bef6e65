"""Caches by name: equal answers for every decoder family, filled slices, float8 with room above its first tokens."""

from types import SimpleNamespace

import pytest
import torch

from internvl.model.caches import KV_CACHES, FilledStaticLayer, Fp8Layer, KeyCastingCache, build_cache
from internvl.model.errors import ConfigError

from .test_language_models import FAMILIES, NEVER, build
from .tiny import document

POSITIONS = [("default", None), ("v2pe_fix", 0.5)]
CPU = torch.device("cpu")


def prompts_of(version, stride):
    """Arguments of `generate`: two prompts of unequal length and image count, the shorter padded on the left."""
    prompts = [document(5, tiles=(1,)), document(6, tiles=(3, 2))]
    width = max(len(ids) for ids, _ in prompts)
    return {
        "input_ids": torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids, _ in prompts]),
        "attention_mask": torch.stack([torch.arange(width) >= width - len(ids) for ids, _ in prompts]).long(),
        "pixel_values": torch.cat([pixels for _, pixels in prompts]),
        "max_new_tokens": 5,
        "do_sample": False,
        "suppress_tokens": NEVER,
        "rope_pos_id_version": version,
        "rope_pos_id_stride": stride,
        "output_logits": True,
        "return_dict_in_generate": True,
    }


def states(num_tokens, *, seed, batch=2, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, 2, num_tokens, 8, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("version", "stride"), POSITIONS)
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}, {"num_beams": 3, "prefill_chunk_size": 7}])
def test_all_but_quantized_answer_the_same(family, version, stride, options):
    """InternLM2 also past the length where its NTK base changes."""
    model = build(family, **({"max_position_embeddings": 32} if family == "InternLM2ForCausalLM" else {}))
    kwargs = prompts_of(version, stride)
    beams = {name: value for name, value in options.items() if name != "prefill_chunk_size"}
    expected = model.generate(**kwargs, **beams)
    for name in ("dynamic", "static", "offloaded"):
        got = model.generate(**kwargs, **options, kv_cache=name)
        assert torch.equal(got.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [None, 7])
def test_quantized_is_close_and_not_equal(family, chunk):
    model = build(family)
    kwargs = {**prompts_of("v2pe_fix", 0.5), "max_new_tokens": 2}
    exact = torch.stack(model.generate(**kwargs).logits)
    got = torch.stack(model.generate(**kwargs, kv_cache="quantized", prefill_chunk_size=chunk).logits)
    # The first token of both saw the same prompt, so its logits can be compared one by one.
    assert torch.equal(got[0], exact[0]) == (chunk is None)
    torch.testing.assert_close(got[0], exact[0], rtol=0.1, atol=0.1 * exact[0].std().item() * 3)
    assert torch.isfinite(got).all()
    assert not torch.equal(got[1], exact[1])


def test_quantized_beams_and_chunks_run():
    model = build("Qwen2ForCausalLM")
    kwargs = prompts_of("v2pe_fix", 0.5)
    got = model.generate(**kwargs, kv_cache="quantized", prefill_chunk_size=7, num_beams=3)
    assert got.sequences.shape == (2, 5)
    assert all(layer.keys.dtype == torch.float8_e4m3fn for layer in got.past_key_values.layers)


def test_the_static_cache_takes_its_memory_once():
    model = build("LlamaForCausalLM")
    kwargs = prompts_of("default", None)
    got = model.generate(**kwargs, kv_cache="static", prefill_chunk_size=7)
    length = kwargs["input_ids"].shape[1] + kwargs["max_new_tokens"]
    assert {layer.keys.shape[2] for layer in got.past_key_values.layers} == {length}
    assert got.past_key_values.get_seq_length() == length - 1  # the last new token is never an input


def test_a_static_layer_returns_what_is_filled_in_place():
    layer = FilledStaticLayer(11)
    parts = [states(4, seed=0), states(1, seed=1), states(3, seed=2)]
    for part in parts:
        keys, values = layer.update(part, 2 * part)
        assert keys.data_ptr() == layer.keys.data_ptr()
    assert torch.equal(keys, torch.cat(parts, dim=2))
    assert torch.equal(values, 2 * torch.cat(parts, dim=2))
    assert layer.get_seq_length() == 8
    assert layer.get_mask_sizes(2) == (10, 0)
    layer.reorder_cache(torch.tensor([1, 1]))
    keys, _ = layer.update(states(1, seed=3), states(1, seed=3))
    assert torch.equal(keys[0, :, :8], torch.cat(parts, dim=2)[1])
    with pytest.raises(ValueError, match="room for 11 tokens"):
        layer.update(states(3, seed=4), states(3, seed=4))
    layer.reset()
    assert torch.equal(layer.update(parts[0], parts[0])[0], parts[0])


@pytest.mark.parametrize(("scale", "precise"), [(10.0, True), (20.0, False)])
def test_float8_has_room_for_later_tokens_that_are_larger(scale, precise):
    layer = Fp8Layer()
    first, later = states(4, seed=0), states(50, seed=1, scale=scale)
    layer.update(first, first)
    keys, values = layer.update(later, -later)
    assert keys.shape[2] == 54
    assert torch.equal(keys[:, :, 4:], -values[:, :, 4:])
    largest = first.abs().max() * 14
    assert (later.abs().max() < largest) == precise
    torch.testing.assert_close(keys[:, :, :4], first, rtol=1 / 15, atol=1e-3)
    torch.testing.assert_close(keys[:, :, 4:], later.clamp(-largest, largest), rtol=1 / 15, atol=1e-3)


@pytest.mark.parametrize("name", KV_CACHES)
def test_rows_are_repeated_and_keys_take_the_dtype_of_values(name):
    cache = build_cache(name, num_layers=1, max_length=6, device=CPU)
    cache.batch_repeat_interleave(2)  # nothing is in there yet
    first, later = states(4, seed=0, batch=2), states(1, seed=1, batch=6)
    cache.update(first, first.bfloat16(), 0)
    cache.batch_repeat_interleave(3)
    keys, values = cache.update(later, later.bfloat16(), 0)
    assert keys.dtype == values.dtype == torch.bfloat16
    expected = torch.cat([first.repeat_interleave(3, dim=0), later], dim=2).bfloat16()
    tolerance = {"rtol": 0.07, "atol": 1e-2} if name == "quantized" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(keys, expected, **tolerance)
    assert cache.get_seq_length() == 5


def test_wrong_requests_are_refused():
    model = build("LlamaForCausalLM")
    ids = document(0, tiles=())[0].unsqueeze(0)
    with pytest.raises(ConfigError, match="'disk', expected one of dynamic, static, offloaded, quantized"):
        model.generate(input_ids=ids, max_new_tokens=2, kv_cache="disk")
    with pytest.raises(ConfigError, match="static' needs max_new_tokens"):
        model.generate(input_ids=ids, kv_cache="static")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}, {"num_beams": 3, "prefill_chunk_size": 7}])
def test_offloading_answers_the_same_on_cuda(options):
    model = build("LlamaForCausalLM").cuda()
    kwargs = {k: v.cuda() if torch.is_tensor(v) else v for k, v in prompts_of("v2pe_fix", 0.5).items()}
    expected = model.generate(**kwargs, **options)
    got = model.generate(**kwargs, **options, kv_cache="offloaded")
    assert torch.equal(got.sequences, expected.sequences)
    assert any(layer.keys.device.type == "cpu" for layer in got.past_key_values.layers)


def test_copies_are_waited_for_on_the_devices_of_the_layers(monkeypatch):
    """The current device may be another one."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    cache = KeyCastingCache()
    cache.offloading = True
    cache.layers = [SimpleNamespace(device="cuda:1"), SimpleNamespace(device="cuda:1"), SimpleNamespace()]
    cache._finish_copies()
    assert waited == ["cuda:1"]
