"""The command that a plan prints starts the job that was planned."""

import json
import re
import shlex
from dataclasses import fields

import pytest

from internvl.plan.__main__ import build_parser, build_setting, main
from internvl.plan.sizes import Trained
from internvl.train.arguments import parse_arguments
from tests.train.test_shell import REPOSITORY, dry_run, split_command


def print_command(*argv, capsys):
    assert main([*argv, "--command"]) == 0
    return shlex.split(capsys.readouterr().out.replace("\\\n", " "))


@pytest.mark.parametrize(
    "argv",
    [
        "--grad_checkpoint True --tiles 64 --zero_stage 2 --gpus 16",
        "--max_packed_tokens 262144 --tiles 512 --gpus 32 --chunk_num 8 --ulysses_degree 2 --grad_checkpoint True "
        "--keep_attention True --vit_batch_size 16 --mlp_tile_tokens 4096",
        "--model InternVL2-8B --gpus 4 --zero_stage 3 --offload_optimizer True --grad_checkpoint True "
        "--offload_activations True --freeze_backbone True --use_llm_lora 16",
        "--max_packed_tokens 4096 --dtype float32 --gpus 8",
    ],
)
def test_the_command_has_the_flags_of_the_plan(argv, capsys):
    words = print_command(*argv.split(), capsys=capsys)
    if "sh" in words:
        at = words.index("sh")
        variables = dict(word.split("=", 1) for word in words[:at])
        started = dry_run("launch.sh", *words[at + 2 :], LAUNCHER="slurm", SUBMIT="0", **variables)
        assert f"--ntasks={variables['GPUS']}" in started
        words = split_command(started)[1]
    else:
        assert words[:4] == ["v2pe", "train", "--processes", re.search(r"--gpus (\d+)", argv)[1]]
        words = words[4:]
    model, data, training = parse_arguments(words)
    given = build_parser().parse_args(argv.split())
    setting = build_setting(given)
    zero = json.loads((REPOSITORY / training.deepspeed).read_text())["zero_optimization"]
    assert model.model_name_or_path == f"pretrained/{given.model}"
    assert data.max_packed_tokens == data.max_seq_length == setting.max_packed_tokens
    assert data.num_images_expected == max(1, setting.tiles)
    assert data.conv_style is None  # the checkpoint's
    assert training.bf16 == (setting.dtype == "bfloat16")
    assert (zero["stage"], "offload_optimizer" in zero) == (setting.zero_stage, setting.offload_optimizer)
    assert training.gradient_accumulation_steps == 1
    assert (model.ulysses_degree or 1) == setting.ulysses_degree
    shared = (
        "chunk_num",
        "grad_checkpoint",
        "keep_attention",
        "vit_batch_size",
        "offload_activations",
        "mlp_tile_tokens",
    )
    for name in shared:
        assert getattr(model, name) == getattr(setting, name), name
    for entry in fields(Trained):
        assert getattr(model, entry.name) == getattr(setting.trained, entry.name), entry.name


def test_fastest_changes_what_does_not_fit(capsys):
    argv = ["--tiles", "64", "--gpu", "A100-80G"]
    assert main([*argv, "--command"]) == 2
    assert "--fastest" in capsys.readouterr().err
    words = print_command(*argv, "--fastest", capsys=capsys)
    line = " ".join(words)
    assert line.startswith("v2pe train --processes 8 internvl2_2b_32k.yaml ")
    assert "--chunk_num 2" in line
    assert "--num_images_expected 64" in line


@pytest.mark.parametrize("flags", [("--zero_stage", "0"), ("--mode", "infer")])
def test_there_is_no_training_command_for_other_jobs(flags, capsys):
    assert main(["--max_packed_tokens", "1024", *flags, "--command"]) == 2
    assert " ".join(flags) in capsys.readouterr().err
