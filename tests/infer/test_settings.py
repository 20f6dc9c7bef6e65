"""Inference settings: every field is an option with a help, and either counts in an evaluation's fingerprint or not."""

import argparse
from dataclasses import fields, replace

import pytest

from internvl.errors import ConfigError
from internvl.infer.flags import add_flags, from_arguments, from_options
from internvl.infer.settings import SAME_ANSWERS, InferenceSettings
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.scaling import RopeScaling
from internvl.parallel.launch import RankEnv

# A value other than the default for every setting; a new setting needs a line here.
OTHERS = {
    "rope_pos_id_version": "v2pe_fix",
    "rope_pos_id_stride": 0.25,
    "dtype": "float16",
    "rope_scaling": RopeScaling("yarn", 4.0, scale_v2pe=True),
    "logn_scaling": 4096,
    "kv_cache": "quantized",
    "prefill_chunk_size": 512,
    "max_num": 2,
    "num_frames": 8,
    "alpha": "drop",
    "cache_mib": 0,
    "reuse_prefix": True,
    "device": "cpu",
}
LOSSLESS = ("kv_cache", "prefill_chunk_size")  # they count with a quantised cache only


def build_parser():
    parser = argparse.ArgumentParser()
    add_flags(parser, InferenceSettings)
    return parser


def write_words(name):
    """The setting's other value as words of a command line."""
    value = OTHERS[name]
    return [f"--{name}", *([] if value is True else [str(value)])]


@pytest.mark.parametrize("name", [entry.name for entry in fields(InferenceSettings)])
def test_every_setting_has_a_help_and_an_option(name):
    [action] = [action for action in build_parser()._actions if action.dest == name]
    assert action.help
    parsed = from_arguments(InferenceSettings, build_parser().parse_args(write_words(name)))
    assert parsed == replace(InferenceSettings(), **{name: OTHERS[name]}) != InferenceSettings()


@pytest.mark.parametrize("name", [entry.name for entry in fields(InferenceSettings)])
def test_a_setting_counts_in_the_fingerprint_or_changes_no_answer(name):
    plain = InferenceSettings()
    changed = replace(plain, **{name: OTHERS[name]})
    if name in SAME_ANSWERS or name == "prefill_chunk_size":
        assert changed.fingerprint() == plain.fingerprint()
    else:
        assert changed.fingerprint() != plain.fingerprint()
        assert changed.fingerprint()[name] == str(OTHERS[name]) or changed.fingerprint()[name] == OTHERS[name]


def test_the_fingerprint_is_that_of_earlier_evaluations():
    common = {"rope_pos_id_version": "default", "rope_pos_id_stride": None, "dtype": "float32"}
    settings = InferenceSettings("default", dtype="float32")
    assert list(settings.fingerprint().items()) == list(common.items())
    same = replace(settings, kv_cache="static", prefill_chunk_size=64, cache_mib=0)
    assert same.fingerprint() == common
    lossy = {"kv_cache": "quantized", "prefill_chunk_size": None}
    assert replace(settings, kv_cache="quantized").fingerprint() == common | lossy
    assert replace(settings, logn_scaling=0).fingerprint() == common | {"logn_scaling": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num": 0}, "--max_num must be at least 1, got 0"),
        ({"cache_mib": -1}, "--cache_mib must be at least 0, got -1"),
        ({"kv_cache": "disk"}, "--kv_cache is 'disk', expected one of dynamic"),
        ({"device": "tpu"}, "--device is 'tpu', expected one of cpu, cuda"),
        ({"logn_scaling": 1}, "--logn_scaling is 1, expected the number of tokens"),
        ({"rope_pos_id_stride": -4}, "must be a positive number"),
        ({"rope_pos_id_stride": 2, "rope_scaling": RopeScaling("dynamic", 2.0)}, "follows the number of tokens"),
    ],
)
def test_wrong_values_are_refused_wherever_they_come_from(options, message):
    with pytest.raises(ConfigError, match=message):
        InferenceSettings(**options)
    with pytest.raises(ConfigError, match=message):
        from_options(InferenceSettings, {name: str(value) for name, value in options.items()})


def test_positions_and_scaling_are_checked_again_when_the_checkpoint_is_known():
    config = InternVLChatConfig(rope_pos_id_version="v2pe_fix", rope_pos_id_stride=4.0)
    with pytest.raises(ConfigError, match="follows the number of tokens"):
        InferenceSettings(rope_scaling=RopeScaling("dynamic", 2.0)).for_checkpoint(config)
    filled = InferenceSettings().for_checkpoint(config)
    assert filled == InferenceSettings("v2pe_fix", 4.0, max_num=config.max_dynamic_patch)


def test_every_process_of_a_machine_gets_its_own_gpu(monkeypatch):
    assert InferenceSettings(device="cpu").on_device(RankEnv()) == InferenceSettings(device="cpu", dtype="float32")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    env = RankEnv(rank=3, local_rank=3, world_size=4, local_world_size=4)
    placed = InferenceSettings().on_device(env)
    assert (placed.device, placed.dtype) == ("cuda:1", "bfloat16")
    assert InferenceSettings(dtype="float16").on_device() == InferenceSettings(dtype="float16", device="cuda")
