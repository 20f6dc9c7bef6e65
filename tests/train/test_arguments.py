import json
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from internvl.errors import CheckpointError, ConfigError, InternVLError
from internvl.train.arguments import (
    DataTrainingArguments,
    ModelArguments,
    TrainingArguments,
    build_training_arguments,
    parse_arguments,
    write_config,
)
from internvl.train.validation import validate_arguments
from tests.train.tiny_run import ENTRY, clean_environment, flags
from tests.warm_python import warm_python

ZERO1 = Path(__file__).parents[2] / "shell" / "deepspeed" / "zero1.json"


@pytest.fixture
def check(checkpoint, meta, tmp_path):
    """Parse and validate the tiny run's flags with changes."""

    def run(**changes):
        arguments = parse_arguments(flags(checkpoint, meta, tmp_path / "out", **changes))
        validate_arguments(*arguments)
        return arguments

    return run


def test_tiny_run_is_accepted(check):
    model, data, training = check()
    assert data.rope_pos_id_version == "v2pe_rnd"
    assert training.max_steps == 8
    assert model.ps_version == "v2"


def test_template_and_tiles_are_the_checkpoints_by_default():
    _, data, _ = parse_arguments([])
    assert (data.conv_style, data.force_image_size, data.down_sample_ratio) == (None, None, None)


def test_every_flag_of_the_public_recipes_is_accepted():
    """The argument list of the public 32k script, as users have it in their own scripts."""
    text = """--conv_style internlm2-chat --force_image_size 448 --down_sample_ratio 0.5 --drop_path_rate 0.1
        --pad2square False --freeze_llm False --freeze_mlp False --freeze_backbone False --vision_select_layer -1
        --use_data_resampling False --dataloader_num_workers 3 --bf16 True --num_train_epochs 1 --max_steps 20000
        --per_device_train_batch_size 1 --gradient_accumulation_steps 1 --evaluation_strategy no
        --save_strategy steps --save_steps 2500 --save_total_limit 5 --learning_rate 5e-6 --weight_decay 0.05
        --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --max_seq_length 34000 --do_train
        --grad_checkpoint True --group_by_length False --dynamic_image_size True --dynamic_max_patch False
        --use_thumbnail True --ps_version v2 --report_to tensorboard --use_packed_ds True --num_images_expected 135
        --max_packed_tokens 34000 --max_buffer_size 20 --log_freq 1000 --strict_mode False --replacement False
        --allow_overflow False --remove_unused_columns False --overwrite_output_dir True --loss_reduction square
        --loss_reduction_all_gather True --rope_pos_id_version v2pe_rnd --chunk_num 1 --scale 25.0
        --compress_seq False --interaction True --fuse_method add --compress_method avg --final_size 100"""
    model, data, training = parse_arguments(text.split())
    assert data.loss_reduction == "square"
    assert data.max_packed_tokens == 34000
    assert training.overwrite_output_dir is True
    assert model.grad_checkpoint is True


def test_strides_may_be_fractions(check):
    assert check(rope_pos_id_version="v2pe_fix", rope_pos_id_stride=0.0625).data.rope_pos_id_stride == 0.0625
    argv = ["--rope_pos_id_random_strides", "4", "1", "0.0625"]
    assert parse_arguments(argv).data.rope_pos_id_random_strides == [4, 1, 0.0625]


def test_a_json_file_supplies_all_arguments(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 64, "max_steps": 3}))
    model, data, training = parse_arguments([str(path)])
    assert (data.rope_pos_id_stride, training.max_steps, model.freeze_llm) == (64, 3, False)


def test_the_file_that_a_run_leaves_says_the_same(tmp_path):
    words = [
        "--rope_pos_id_random_strides",
        "4",
        "0.0625",
        "--bf16",
        "True",
        "--learning_rate",
        "5e-6",
        "--hub_token",
        "x",
    ]
    words += [
        "--lr_scheduler_kwargs",
        '{"num_decay_steps": 5, "min_lr_ratio": 0.1}',
        "--output_dir",
        "a b",
        "--seed=-1",
    ]
    arguments = parse_arguments(words)
    path = tmp_path / "run.yaml"
    path.write_text(write_config(arguments))
    assert "hub_token" not in path.read_text()
    arguments.training.hub_token = None
    assert parse_arguments([str(path)]) == arguments


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not json"),
        ("[]", "expected options"),
        ('{"rope_stride": 1}', "unknown option 'rope_stride', did you mean"),
    ],
)
def test_a_wrong_json_file_is_explained(tmp_path, content, match):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=match):
        parse_arguments([str(path)])


def test_a_missing_json_file_is_explained():
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        parse_arguments(["nowhere.json"])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rope_pos_id_version": "v3"}, "unknown rope_pos_id_version 'v3'; expected one of default, v2pe_fix"),
        ({"rope_pos_id_version": "v2pe_fix"}, "v2pe_fix needs rope_pos_id_stride"),
        ({"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0}, "must be a positive number, got 0"),
        ({"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": -1}, "must be a positive number"),
        ({"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.1}, "not a multiple of 1/65536"),
        ({"rope_pos_id_stride": 4}, "no effect with --rope_pos_id_version v2pe_rnd"),
        ({"rope_pos_id_random_strides": 0}, "must be a positive number"),
        ({"rope_scaling": "ntk:2"}, "--rope_scaling 'ntk:2' is not known; expected none, linear:FACTOR"),
        ({"rope_scaling": "yarn:0.5"}, "--rope_scaling: factor is 0.5"),
        ({"rope_scaling": '{"type": "yarn"}'}, "--rope_scaling: factor is None"),
        ({"rope_scaling": "dynamic:2"}, "no meaning with rope_pos_id_version v2pe_rnd"),
        ({"attn_type": "sparse"}, "expected packed, ring or ulysses"),
        ({"attn_type": "packed", "chunk_num": 2}, "--attn_type packed keeps a row on one rank"),
        ({"chunk_num": 0}, "--chunk_num 0: expected 1 or larger"),
        ({"chunk_num": 4, "ulysses_degree": 3}, "--ulysses_degree 3 does not divide --chunk_num 4"),
        ({"attn_type": "ulysses", "chunk_num": 4, "ulysses_degree": 2}, "use --attn_type ring"),
        ({"vit_batch_size": 0}, "--vit_batch_size 0: expected 1"),
        ({"mlp_tile_tokens": -1}, "--mlp_tile_tokens -1: expected 1"),
        ({"keep_attention": True, "chunk_num": 2}, "--keep_attention needs --grad_checkpoint True"),
        ({"keep_attention": True, "grad_checkpoint": True}, "--keep_attention needs .* --attn_type ring"),
        ({"offload_activations": True}, "--offload_activations needs --grad_checkpoint True"),
        ({"compress_seq": True}, "abandoned sequence-compression experiment"),
        ({"interaction": False}, "abandoned sequence-compression experiment"),
        ({"final_size": 5}, "abandoned sequence-compression experiment"),
        ({"strict_mode": True}, "rows are never padded"),
        ({"replacement": True}, "only behaviour"),
        ({"allow_overflow": True}, "raise --max_packed_tokens"),
        ({"neftune_alpha": 5.0}, "use --neftune_noise_alpha"),
        ({"use_custom_trainer": True}, "layer-wise learning-rate decay"),
        ({"img_emb_down_sample_ratio": 2}, "not available"),
        ({"evaluation_strategy": "steps"}, "evaluate checkpoints with scripts"),
        ({"eval_strategy": "steps"}, "evaluate checkpoints with scripts"),
        ({"group_by_length": True}, "no meaning for packed rows"),
        ({"llm_path": "somewhere"}, "internvl.tools.assemble"),
        ({"use_llm_lora": -1}, "expected a rank"),
        ({"drop_path_rate": 1.0}, "0 <= rate < 1"),
        ({"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}, "nothing to train"),
        ({"max_seq_length": 0}, "--max_seq_length 0: expected 1 or larger"),
        ({"max_seq_length": 999}, "larger than --max_packed_tokens 320"),
        ({"max_dynamic_patch": 17}, "larger than --num_images_expected 16"),
        ({"min_dynamic_patch": 3}, "--min_dynamic_patch 3 is larger than --max_dynamic_patch 2"),
        ({"max_skipped": 5}, "share between 0 and 1"),
        ({"per_device_train_batch_size": 4}, "a batch is one row"),
        ({"fp16": True, "use_cpu": True}, "fp16 True needs a GPU"),
        ({"bf16": True, "use_cpu": True}, "float32 master weights"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"deepspeed": "nowhere.json"}, "nowhere.json: no such file"),
        ({"warmup_ratio": 3}, "0 <= ratio < 1"),
        ({"meta_path": None}, "--meta_path is missing"),
        ({"meta_path": "nowhere.json"}, "nowhere.json"),
        ({"meta_path": str(ENTRY)}, "is not json"),
        ({"model_name_or_path": None}, "--model_name_or_path is missing"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_wrong_combinations_are_explained(check, changes, match):
    with pytest.raises(ConfigError, match=match):
        check(**changes)


def test_bf16_on_cpu_is_fine_with_deepspeed(check):
    assert check(bf16=True, use_cpu=True, deepspeed=ZERO1).training.bf16


@pytest.mark.parametrize("problem", ["missing", "no config", "no weights"])
def test_an_incomplete_checkpoint_folder_is_explained(check, tmp_path, problem):
    folder = tmp_path / "folder"
    if problem != "missing":
        folder.mkdir()
    if problem == "no weights":
        (folder / "config.json").write_text("{}")
    match = {
        "missing": "does not exist.*hf download",
        "no config": "config.json is missing",
        "no weights": "no weights",
    }
    with pytest.raises(CheckpointError, match=f"--model_name_or_path {folder}: .*{match[problem]}"):
        check(model_name_or_path=folder)


def test_training_starts_from_a_hub_id_in_the_local_cache(check, monkeypatch, checkpoint):
    monkeypatch.setattr("internvl.model.checkpoint_folder.snapshot_download", lambda *_, **__: str(checkpoint))
    assert check(model_name_or_path="someone/InternVL2-Some").model.model_name_or_path == str(checkpoint)


def test_training_runs_on_cpu_where_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr("internvl.train.arguments.has_cuda", lambda: False)
    built = build_training_arguments(parse_arguments(["--output_dir", str(tmp_path)]).training)
    assert built.device.type == "cpu"


def test_warmup_ratio_becomes_a_share_of_all_steps(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--warmup_ratio", "0.03", "--use_cpu", "True"]
    assert build_training_arguments(parse_arguments(argv).training).get_warmup_steps(1000) == 30


def test_refusals_of_transformers_are_config_errors(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--logging_steps", "0", "--use_cpu", "True"]
    with pytest.raises(ConfigError, match="logging_steps"):
        build_training_arguments(parse_arguments(argv).training)


def test_every_flag_has_a_help_text():
    for kind in (ModelArguments, DataTrainingArguments, TrainingArguments):
        assert [f.name for f in fields(kind) if not f.metadata.get("help")] == []


def test_help_needs_no_distributed_environment_and_no_deepspeed(tmp_path):
    """RANK without its companions would make any process group fail; --help must not even look."""
    code = f"""
import runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("internvl", "deepspeed")]:
    del sys.modules[name]  # as if nothing were imported
sys.modules["deepspeed"] = None  # an import fails
sys.argv = ["finetune", "--help"]
runpy.run_path({str(ENTRY)!r}, run_name="__main__")
"""
    environment = clean_environment(LAUNCHER="slurm", RANK="7")
    result = subprocess.run([warm_python(), "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "--rope_pos_id_version" in result.stdout
    assert "Positions that one tile spans" in result.stdout


def test_errors_are_one_line_with_exit_code_2(checkpoint, meta, tmp_path):
    argv = flags(checkpoint, meta, tmp_path / "out", rope_pos_id_version="v3")
    result = subprocess.run(
        [warm_python(), "-m", "internvl.train.internvl_chat_finetune", *argv],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "error: unknown rope_pos_id_version 'v3'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    assert issubclass(ConfigError, InternVLError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit_layer_decay_rate": 0}, "--vit_layer_decay_rate 0.0: expected 0 < rate <= 1"),
        ({"vit_layer_decay_rate": 1.5}, "--vit_layer_decay_rate 1.5"),
        ({"vit_layer_decay_rate": "nan"}, "--vit_layer_decay_rate nan"),
        ({"mlp_learning_rate": -1e-3}, "--mlp_learning_rate -0.001: expected 0 or larger"),
        ({"vision_learning_rate": "inf"}, "--vision_learning_rate inf"),
        ({"max_bad_steps": 0}, "--max_bad_steps 0: expected 1 or larger"),
        ({"peak_tflops": 0}, "--peak_tflops 0.0"),
        ({"use_custom_trainer": True}, "use --vit_layer_decay_rate"),
    ],
)
def test_rates_and_limits_are_checked(check, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(**changes)


def test_unknown_policies_are_refused_also_from_json(checkpoint, meta, tmp_path):
    with pytest.raises(SystemExit):
        parse_arguments(flags(checkpoint, meta, tmp_path / "out", nan_policy="ignore"))
    arguments = parse_arguments(flags(checkpoint, meta, tmp_path / "out"))
    arguments.training.nan_policy = "ignore"
    with pytest.raises(ConfigError, match="--nan_policy ignore: expected stop or skip"):
        validate_arguments(*arguments)


def test_the_variable_of_the_public_code_is_not_ignored_silently(check, monkeypatch):
    monkeypatch.setenv("VIT_LAYER_DECAY_RATE", "0.9")
    with pytest.raises(ConfigError, match=r"pass --vit_layer_decay_rate 0\.9, or unset it"):
        check()
    check(vit_layer_decay_rate=0.9)
    monkeypatch.setenv("VIT_LAYER_DECAY_RATE", "1.0")
    check()
