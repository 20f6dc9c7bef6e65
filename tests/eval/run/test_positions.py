"""Which positions a model answers on, when some or none are asked for."""

import pytest
import torch

from eval.run.options import parse_options
from eval.run.planning import choose_positions
from internvl.infer.chat import build_parser as build_chat_parser
from internvl.infer.flags import from_arguments, from_options
from internvl.infer.settings import InferenceSettings
from tests.model.tiny import document, tiny_config, tiny_model


@pytest.mark.parametrize(
    ("saved", "meant"),
    [("default", "v2pe_fix"), ("v2pe_fix", "v2pe_fix"), ("v2pe_rnd", "v2pe_fix"), ("mrope", "mrope"), ("hope", "hope")],
)
def test_a_stride_alone_means_one_version_at_every_door(saved, meant):
    """A command line (chat, an evaluation), options of a bridge, and `model.chat`."""
    stride = 16
    config = tiny_config()
    config.rope_pos_id_version, config.rope_pos_id_stride = saved, 64
    chat = build_chat_parser().parse_args(["--checkpoint", "x", "--rope_pos_id_stride", "16", "Why?"])
    evaluation = parse_options(["--checkpoint", "x", "--tasks", "pope", "--rope_pos_id_stride", "16"])
    for settings in (
        from_arguments(InferenceSettings, chat).for_checkpoint(config),
        InferenceSettings(rope_pos_id_stride=stride).for_checkpoint(config),
        from_options(InferenceSettings, {"rope_pos_id_stride": "16"}).for_checkpoint(config),
        choose_positions(evaluation.settings, config.to_dict()),
    ):
        assert (settings.rope_pos_id_version, settings.rope_pos_id_stride) == (meant, stride)
    asked = InferenceSettings().for_checkpoint(config).with_positions(None, stride)  # in a conversation, or a request
    assert (asked.rope_pos_id_version, asked.rope_pos_id_stride) == (meant, stride)
    model = tiny_model()
    model.config.rope_pos_id_version = saved
    ids = document(1, tiles=(1, 1))[0].unsqueeze(0)
    expected = model.build_positions(ids, rope_pos_id_version=meant, rope_pos_id_stride=stride)
    assert torch.equal(model.build_positions(ids, rope_pos_id_stride=stride), expected)


def test_without_version_and_stride_an_evaluation_has_ordinary_positions():
    evaluation = parse_options(["--checkpoint", "x", "--tasks", "pope"])
    settings = choose_positions(evaluation.settings, {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 64})
    assert (settings.rope_pos_id_version, settings.rope_pos_id_stride) == ("default", None)


@pytest.mark.parametrize(
    ("flags", "saved", "expected"),
    [
        ([], ("mrope", None), None),
        (["--rope_pos_id_stride", "16"], ("default", None), 16),
        ([], ("mrope", 2.0), 2),
        ([], ("v2pe_fix", 64), None),
    ],
)
def test_a_version_of_several_axes_has_its_own_stride_or_none(flags, saved, expected):
    evaluation = parse_options(["--checkpoint", "x", "--tasks", "pope", "--rope_pos_id_version", "mrope", *flags])
    config = dict(zip(("rope_pos_id_version", "rope_pos_id_stride"), saved, strict=True))
    settings = choose_positions(evaluation.settings, config)
    assert (settings.rope_pos_id_version, settings.rope_pos_id_stride) == ("mrope", expected)
    told = settings.fingerprint()
    assert (told["rope_pos_id_version"], told["rope_pos_id_stride"]) == ("mrope", expected)
