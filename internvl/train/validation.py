"""Validation: wrong flags and combinations of flags, refused in seconds instead of after a model load."""

import json
import math
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from internvl.data.storage.text import decode_text
from internvl.errors import CheckpointError, ConfigError, DataError
from internvl.model.checkpoint_folder import check_files, find_checkpoint
from internvl.model.positions import check_stride, takes_stride
from internvl.model.scaling import parse_rope_scaling
from internvl.model.v2pe import stride_to_units
from internvl.train.arguments import DataTrainingArguments, ModelArguments, has_cuda, shares_rows


def validate_arguments(model: ModelArguments, data: DataTrainingArguments, training: Namespace) -> None:
    """Refuse wrong values and combinations, before anything is loaded.

    Raises:
        ConfigError: A flag is wrong; the message says what to change.
        CheckpointError: The folder to start from is missing or not a checkpoint.
    """
    _check_positions(data)
    if model.rope_scaling is not None:
        parse_rope_scaling(model.rope_scaling).check_version(data.rope_pos_id_version)
    _check_model(model)
    _check_rows(data, training)
    _check_precision(training)
    _check_optimisation(training)
    _check_data_files(data)


def _check_counts(flags: object, *names: str) -> None:
    for name in names:
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: expected 1 or larger")


def _check_positions(data: DataTrainingArguments) -> None:
    check_stride(data.rope_pos_id_version, data.rope_pos_id_stride)
    if data.rope_pos_id_stride is not None:
        if not takes_stride(data.rope_pos_id_version):
            raise ConfigError(
                f"--rope_pos_id_stride {data.rope_pos_id_stride} has no effect with --rope_pos_id_version "
                f"{data.rope_pos_id_version}; use v2pe_fix, or --rope_pos_id_random_strides with v2pe_rnd"
            )
        stride_to_units(data.rope_pos_id_stride)
    if not data.rope_pos_id_random_strides:
        raise ConfigError("--rope_pos_id_random_strides is empty; give at least one stride")
    for stride in data.rope_pos_id_random_strides:
        stride_to_units(stride)


def _check_model(model: ModelArguments) -> None:
    _check_row_sharing(model)
    for name in ("use_llm_lora", "use_backbone_lora"):
        if getattr(model, name) < 0:
            raise ConfigError(f"--{name} {getattr(model, name)}: expected a rank, 0 or larger")
    if not 0 <= model.drop_path_rate < 1:
        raise ConfigError(f"--drop_path_rate {model.drop_path_rate}: expected 0 <= rate < 1")
    if model.model_name_or_path is None:
        raise ConfigError("--model_name_or_path is missing: the InternVL2-format folder to start from")
    model.model_name_or_path = _find_checkpoint(model.model_name_or_path)
    if model.mlp_path is not None and not Path(model.mlp_path).is_file():
        raise CheckpointError(f"--mlp_path {model.mlp_path}: no such file")
    if model.tokenizer_path is not None and not Path(model.tokenizer_path).is_dir():
        raise CheckpointError(f"--tokenizer_path {model.tokenizer_path}: no such folder")
    nothing_trained = model.freeze_llm and model.freeze_backbone and model.freeze_mlp
    exceptions = model.use_llm_lora or model.use_backbone_lora or model.unfreeze_vit_layers or model.unfreeze_lm_head
    if nothing_trained and not exceptions:
        raise ConfigError("--freeze_llm, --freeze_backbone and --freeze_mlp leave nothing to train; drop one")


def _check_row_sharing(model: ModelArguments) -> None:
    if model.attn_type not in (None, "packed", "ring", "ulysses"):
        raise ConfigError(f"--attn_type {model.attn_type}: expected packed, ring or ulysses")
    _check_counts(model, "chunk_num", "ulysses_degree", "vit_batch_size", "mlp_tile_tokens")
    if model.attn_type == "packed" and model.chunk_num > 1:
        raise ConfigError(
            f"--attn_type packed keeps a row on one rank, but --chunk_num is {model.chunk_num}; use ring or ulysses"
        )
    if model.chunk_num % (model.ulysses_degree or 1):
        raise ConfigError(f"--ulysses_degree {model.ulysses_degree} does not divide --chunk_num {model.chunk_num}")
    if model.attn_type == "ulysses" and model.ulysses_degree not in (None, model.chunk_num):
        raise ConfigError(
            f"--attn_type ulysses splits heads over all --chunk_num {model.chunk_num} ranks, but --ulysses_degree is "
            f"{model.ulysses_degree}; use --attn_type ring for a ring of ulysses groups"
        )
    if model.offload_activations and not model.grad_checkpoint:
        raise ConfigError("--offload_activations needs --grad_checkpoint True: it moves what recomputation starts from")
    if model.keep_attention and not (model.grad_checkpoint and shares_rows(model)):
        raise ConfigError("--keep_attention needs --grad_checkpoint True and --attn_type ring (or --chunk_num above 1)")


def _find_checkpoint(name: str) -> str:
    """The folder of a checkpoint, which may be named by a hub id, checked before anything takes time."""
    try:
        folder = find_checkpoint(name)
        check_files(folder)
    except CheckpointError as error:
        raise CheckpointError(f"--model_name_or_path {name}: {error}") from None
    return str(folder)


def _check_rows(data: DataTrainingArguments, training: Namespace) -> None:
    from internvl.data.video import check_sampling

    positive = ("max_seq_length", "force_image_size", "max_packed_tokens", "num_images_expected", "max_buffer_size")
    _check_counts(data, *positive, "min_dynamic_patch", "max_dynamic_patch", "min_num_frame", "max_num_frame")
    for thing in ("dynamic_patch", "num_frame"):
        low, high = getattr(data, f"min_{thing}"), getattr(data, f"max_{thing}")
        if low > high:
            raise ConfigError(f"--min_{thing} {low} is larger than --max_{thing} {high}")
    check_sampling(data.frame_sampling)
    if not 0 <= data.max_skipped <= 1:
        raise ConfigError(f"--max_skipped {data.max_skipped}: expected a share between 0 and 1")
    if data.use_packed_ds and training.per_device_train_batch_size != 1:
        raise ConfigError(
            f"--per_device_train_batch_size {training.per_device_train_batch_size}: with --use_packed_ds True a batch "
            "is one row; use 1, and --max_packed_tokens or --gradient_accumulation_steps for larger batches"
        )
    if data.use_packed_ds and data.max_seq_length > data.max_packed_tokens:
        raise ConfigError(
            f"--max_seq_length {data.max_seq_length} is larger than --max_packed_tokens {data.max_packed_tokens}: "
            "such documents fit no row; lower the first or raise the second"
        )
    if data.use_packed_ds and data.max_dynamic_patch > data.num_images_expected:
        raise ConfigError(
            f"--max_dynamic_patch {data.max_dynamic_patch} is larger than --num_images_expected "
            f"{data.num_images_expected}: one image may not fit a row; lower the first or raise the second"
        )


def _check_precision(training: Namespace) -> None:
    if training.bf16 and training.fp16:
        raise ConfigError("--bf16 True and --fp16 True exclude each other; keep --bf16 True")
    on_cpu = training.use_cpu or not has_cuda()
    if training.fp16 and on_cpu:
        raise ConfigError("--fp16 True needs a GPU; on CPU use --bf16 True, or neither for float32")
    if training.bf16 and on_cpu and not training.deepspeed:
        raise ConfigError(
            "--bf16 True on CPU needs DeepSpeed's float32 master weights; add --deepspeed shell/deepspeed/zero1.json, "
            "or train in float32 with --bf16 False"
        )
    if training.deepspeed:
        _read_json(Path(training.deepspeed))
    if training.warmup_ratio is not None and not 0 <= training.warmup_ratio < 1:
        raise ConfigError(f"--warmup_ratio {training.warmup_ratio}: expected 0 <= ratio < 1")


def _check_optimisation(training: Namespace) -> None:
    for name in ("vision_learning_rate", "mlp_learning_rate"):
        rate = getattr(training, name)
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise ConfigError(f"--{name} {rate}: expected 0 or larger (to leave the part alone freeze it)")
    decay = training.vit_layer_decay_rate
    if not 0 < decay <= 1:
        raise ConfigError(f"--vit_layer_decay_rate {decay}: expected 0 < rate <= 1")
    variable = os.environ.get("VIT_LAYER_DECAY_RATE")
    if variable is not None and not _is_number(variable, decay):
        raise ConfigError(
            f"the variable VIT_LAYER_DECAY_RATE={variable} is not read; pass --vit_layer_decay_rate {variable}, or "
            "unset it"
        )
    if training.nan_policy not in ("stop", "skip"):
        raise ConfigError(f"--nan_policy {training.nan_policy}: expected stop or skip")
    _check_counts(training, "max_bad_steps")
    if training.peak_tflops is not None and not (math.isfinite(training.peak_tflops) and training.peak_tflops > 0):
        raise ConfigError(f"--peak_tflops {training.peak_tflops}: expected TFLOP/s of one device, above 0")


def _is_number(text: str, value: float) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False


def _check_data_files(data: DataTrainingArguments) -> None:
    from internvl.data.meta import load_meta

    if data.meta_path is None:
        raise ConfigError("--meta_path is missing: the json that lists the training data sets")
    load_meta(data.meta_path, data_root=data.data_root)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(decode_text(path.read_bytes(), str(path)))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (current directory {Path.cwd()})") from None
    except (OSError, ValueError, DataError) as error:
        raise ConfigError(f"{path} is not json: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a json object, got {type(content).__name__}")
    return content
