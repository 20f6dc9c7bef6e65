"""Arguments: every flag of training, parsed.

Names and types are those of the public V2PE recipes, so their command lines run unchanged (internvl/moved_names.py
lists the flags that have no effect here). Defaults differ from the public ones in six places, where those fit no
released checkpoint or no packed row: ps_version v2, strict_mode False, per_device_train_batch_size 1; and conv_style,
force_image_size and down_sample_ratio, which are the checkpoint's (`model_loading.settle_flags`).

Parsing has two halves, because transformers' `TrainingArguments` touches devices and process groups when built:

    parse_arguments -> validate_arguments -> init_distributed -> build_training_arguments
    flags as given     ConfigError           process group       device, DeepSpeed
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import transformers
import yaml
from transformers import HfArgumentParser

from internvl.errors import ConfigError
from internvl.model.positions import ROPE_POS_ID_VERSIONS, has_axes
from internvl.model.v2pe import RANDOM_STRIDES
from internvl.moved_names import DEEPSPEED_CONFIGS, FIXED_TRAINING_FLAGS, TRAINING_FLAGS, check_flag
from internvl.options import option
from internvl.parser import CommandParser
from internvl.shipped import find_shipped
from internvl.train.parameter_groups import LearningRates

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass
class ModelArguments:
    """Which model is trained, and which parts of it."""

    model_name_or_path: str | None = option(None, "InternVL2-format checkpoint folder to start from.")
    tokenizer_path: str | None = option(None, "Tokenizer folder; the checkpoint's own when not given.")
    mlp_path: str | None = option(None, "State dict file of the projector (mlp1), loaded over the checkpoint's.")
    freeze_llm: bool = option(False, "Do not train the language model.")
    freeze_backbone: bool = option(False, "Do not train the vision tower.")
    freeze_mlp: bool = option(False, "Do not train the projector.")
    unfreeze_vit_layers: int = option(0, "Train ViT layers from this index on; negative counts from the end; 0: off.")
    vision_select_layer: int = option(-1, "ViT hidden state that the projector sees; -1 is the last.")
    use_backbone_lora: int = option(0, "LoRA rank for the vision tower; 0: off. Other ViT weights stay frozen.")
    use_llm_lora: int = option(0, "LoRA rank for the language model; 0: off. Other LLM weights stay frozen.")
    unfreeze_lm_head: bool = option(False, "Train the LLM's output layer although the LLM is frozen or has LoRA.")
    grad_checkpoint: bool = option(False, "Recompute activations of ViT and LLM in the backward pass to save memory.")
    drop_path_rate: float = option(0.0, "Stochastic depth of the ViT: greatest rate, reached in its last layer.")
    ps_version: Literal["v1", "v2"] = option("v2", "Pixel shuffle version; InternVL2 checkpoints use v2.")
    chunk_num: int = option(1, "Ranks that share one row (sequence parallelism); divides the number of processes.")
    ulysses_degree: int | None = option(
        None, "Of the ranks that share a row, how many split its heads; default 1 (ring), chunk_num for ulysses."
    )
    attn_kernel: str | None = option(
        None, "What computes attention blocks of shared rows: cpu_flash, cuda_flash, flash_attn, ring_flash_attn."
    )
    flash_impl: str | None = option(None, "FA3 or FA4: that package's kernels in place of torch's flash kernel (GPU).")
    vit_batch_size: int | None = option(
        None, "Tiles that pass the vision tower at a time, recomputed in the backward pass; bounds memory of long rows."
    )
    keep_attention: bool = option(
        False, "With --grad_checkpoint: keep attention outputs (attn_type ring), so that the ring does not run twice."
    )
    offload_activations: bool = option(
        False, "With --grad_checkpoint: keep the inputs of recomputed layers in main memory instead of the GPU's."
    )
    mlp_tile_tokens: int | None = option(
        None, "Tokens that pass a decoder MLP at a time, recomputed in the backward pass; for very long rows."
    )
    rope_scaling: str | None = option(
        None,
        "Scale rotary positions, V2PE's included: yarn:4, linear:2, dynamic:2 (default positions only), none, or a "
        "json object; saved with the checkpoint. The checkpoint's own scaling when not given.",
    )
    attn_type: str | None = option(
        None,
        "Attention over rows: packed (one rank per row), ring or ulysses (--chunk_num ranks); default by --chunk_num.",
    )


@dataclass
class DataTrainingArguments:
    """Which data is read, and how it becomes rows."""

    max_seq_length: int = option(2048, "Longest document in tokens; last turns are dropped, else it is skipped.")
    truncation: Literal["drop_turns", "error"] = option(
        "drop_turns", "Longer documents: drop their last turns, whole, with their images; or skip them (error)."
    )
    force_image_size: int | None = option(
        None, "Side of a tile in pixels; the ViT's position table is resized to it. Default: the checkpoint's."
    )
    down_sample_ratio: float | None = option(None, "Pixel-shuffle ratio; must equal the checkpoint's, the default.")
    pad2square: bool = option(False, "Pad tiles to squares instead of stretching (data without data_augment only).")
    alpha: Literal["white", "drop"] = option(
        "white", "Transparent parts show white, or (drop) the colour stored there, as in the public code."
    )
    conv_style: str | None = option(
        None, "Prompt template, written to the checkpoint's config as template. Default: the checkpoint's."
    )
    meta_path: str | None = option(None, "Meta json: data set name -> annotation, root, repeat_time, ...")
    data_root: str | None = option(None, "Folder that relative paths of the meta json are below.")
    data_order: Literal["shuffle", "sequential"] = option(
        "shuffle", "Order of documents in an epoch: shuffled by seed and epoch, or as the meta json lists them."
    )
    max_skipped: float = option(0.01, "Share of bad samples that may be skipped; more of them stop the run.")
    use_data_resampling: bool = option(False, "Weight data sets by the square root of their number of documents.")
    dynamic_image_size: bool = option(False, "Cut images into tiles by aspect ratio (a meta entry may override).")
    dynamic_max_patch: bool = option(False, "Several images share max_dynamic_patch: each gets its n-th part.")
    use_thumbnail: bool = option(False, "Append a thumbnail tile to images of more than one tile.")
    min_dynamic_patch: int = option(1, "Fewest tiles of an image.")
    max_dynamic_patch: int = option(12, "Most tiles of an image (a meta entry may override).")
    min_num_frame: int = option(4, "Fewest frames of a video; written to the checkpoint's config.")
    max_num_frame: int = option(20, "Most frames of a video; written to the checkpoint's config.")
    frame_sampling: str = option(
        "rand", "Which frames of a video: rand, middle or uniform; or by the clock, fps1 or fps0.5 (frames per second)."
    )
    normalize_type: Literal["imagenet", "clip", "siglip"] = option("imagenet", "Mean and deviation of pixel values.")
    use_packed_ds: bool = option(
        False, "Pack documents into rows; otherwise a row is --per_device_train_batch_size documents, end to end."
    )
    num_images_expected: int = option(12, "Most tiles in a row.")
    max_packed_tokens: int = option(8192, "Most tokens in a row.")
    max_buffer_size: int = option(20, "Rows kept open at a time while packing.")
    packing_policy: Literal["greedy", "best_fit", "balanced"] = option(
        "greedy", "How rows are chosen: greedy, best_fit (fullest) or balanced (full, and of equal work)."
    )
    log_freq: int = option(1000, "No effect: packing statistics are logged with every --logging_steps.")
    loss_reduction: Literal["token", "sample", "square"] = option(
        "token", "Weight of a target token in a document of n targets: 1, 1/n or 1/sqrt(n)."
    )
    loss_reduction_all_gather: bool = option(
        False, "Divide the weighted loss by the sum of weights over all ranks; otherwise by the rank's own sum."
    )
    loss_kernel: Literal["chunked", "liger"] = option(
        "chunked", "What computes the loss: chunked (ours, any device) or liger (liger-kernel, CUDA, token weights)."
    )
    rope_pos_id_version: str = option(
        "default",
        "Visual positions: default (one per token), v2pe_fix (one stride), v2pe_rnd (random stride per image), or "
        f"on axes of time, row and column: {', '.join(filter(has_axes, ROPE_POS_ID_VERSIONS))}.",
    )
    rope_pos_id_stride: float | None = option(
        None,
        "Positions that one tile spans under v2pe_fix, or on the axis of time; fractions such as 0.0625 are fine.",
    )
    rope_pos_id_random_strides: list[float] = field(
        default_factory=lambda: list(RANDOM_STRIDES),
        metadata={"help": "Strides that v2pe_rnd draws from, separated by spaces."},
    )
    rope_pos_id_rnd_scope: Literal["image", "sample"] = option(
        "image", "Draw the random stride per image, or once for all images of a sample."
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments, those that its version 5 dropped, and ours; without a GPU they choose the CPU."""

    per_device_train_batch_size: int = option(1, "Documents in a row without packing; 1 with --use_packed_ds True.")
    overwrite_output_dir: bool = option(
        False, "Start from the beginning in an output_dir that is not empty, ignoring checkpoints."
    )
    warmup_ratio: float | None = option(None, "Share of all steps with rising learning rate; or use --warmup_steps.")
    skipped_path: str | None = option(None, "Where skipped samples are listed; default output_dir/skipped.jsonl.")
    vision_learning_rate: float | None = option(None, "Learning rate of the vision tower; default --learning_rate.")
    mlp_learning_rate: float | None = option(None, "Learning rate of the projector (mlp1); default --learning_rate.")
    vit_layer_decay_rate: float = option(
        1.0,
        "Layer-wise learning-rate decay of the vision tower: layer i of L trains with its rate times "
        "DECAY ** (L - i), the embeddings with DECAY ** (L + 1); 1: all alike.",
    )
    save_in_background: bool = option(
        True, "Train on while a checkpoint's files are written, from a copy in main memory; False: wait for the files."
    )
    nan_policy: Literal["stop", "skip"] = option(
        "stop",
        "When loss or gradient norm is not finite: stop with the documents named and a checkpoint of the state before "
        "the step, or skip the step (listed in output_dir/bad_steps.jsonl). No effect with --fp16.",
    )
    max_bad_steps: int = option(10, "With --nan_policy skip: stop at this many bad steps in a row.")
    peak_tflops: float | None = option(
        None,
        "Dense TFLOP/s of one device in the training precision, for MFU; default: by the name of the GPU (bfloat16), "
        "no MFU where that is not known.",
    )

    @property
    def learning_rates(self) -> LearningRates:
        """By part of the model."""
        return LearningRates(
            self.learning_rate, self.vision_learning_rate, self.mlp_learning_rate, self.vit_layer_decay_rate
        )


# Flags of the public code that are parsed although they have no effect, so that old command lines run.
RemovedArguments = make_dataclass(
    "RemovedArguments",
    [
        (flag, str if old.harmless is None else type(old.harmless), option(old.harmless, f"Removed: {old.use}."))
        for flag, old in TRAINING_FLAGS.items()
    ],
)
Options = TypeVar("Options", bound="DataclassInstance")


def take_flags(kind: type[Options], flags: object, **others: object) -> Options:
    """Options of which every field is the flag of that name, if there is one, or one of `others`."""
    named = {f.name: getattr(flags, f.name) for f in fields(kind) if hasattr(flags, f.name)}
    return kind(**(named | others))


class TrainingParser(CommandParser, HfArgumentParser):
    """Makes options of dataclasses, as transformers does."""


# The flags that --help shows.
_OFTEN = {
    "model and data": [
        *("model_name_or_path", "output_dir", "overwrite_output_dir", "meta_path", "data_root", "conv_style"),
        *("force_image_size", "dynamic_image_size", "max_dynamic_patch", "use_thumbnail", "max_num_frame"),
    ],
    "positions": [
        *("rope_pos_id_version", "rope_pos_id_stride", "rope_pos_id_random_strides", "rope_scaling"),
    ],
    "rows": ["use_packed_ds", "max_seq_length", "max_packed_tokens", "num_images_expected", "loss_reduction"],
    "what trains": ["freeze_llm", "freeze_backbone", "freeze_mlp", "use_llm_lora", "use_backbone_lora"],
    "steps": [
        *("learning_rate", "max_steps", "num_train_epochs", "gradient_accumulation_steps", "warmup_ratio"),
        *("lr_scheduler_type", "save_steps", "save_total_limit", "logging_steps", "report_to", "run_name", "seed"),
    ],
    "memory and speed": [
        *("bf16", "deepspeed", "grad_checkpoint", "chunk_num", "attn_type", "vit_batch_size"),
        *("dataloader_num_workers",),
    ],
}


class Arguments(NamedTuple):
    """What the command line says; `training` holds the fields of `TrainingArguments`, not yet built."""

    model: ModelArguments
    data: DataTrainingArguments
    training: Namespace


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read flags, after those of a config file in front of them; touches no device and no process group.

    Raises:
        ConfigError: The config file is missing or malformed, or has an unknown key; or a removed flag was given.
        SystemExit: As argparse does for --help (0) and unknown or ill-typed flags (2).
    """
    parser = TrainingParser(
        (ModelArguments, DataTrainingArguments, TrainingArguments, RemovedArguments),
        prog="internvl_chat_finetune.py",
        usage="%(prog)s [FILE.yaml [KEY=VALUE ...]] [--FLAG VALUE ...]",
        description="Fine-tune an InternVL2 checkpoint with V2PE positions.",
        often=_OFTEN,
        takes_config=True,
    )
    given = parser.parse_args(list(argv))
    _refuse_moved_flags(given)
    given.deepspeed = _find_deepspeed_config(given.deepspeed)
    training = {f.name: getattr(given, f.name) for f in fields(TrainingArguments) if f.init}
    model, data = take_flags(ModelArguments, given), take_flags(DataTrainingArguments, given)
    return Arguments(model, data, Namespace(**training))


def write_config(arguments: Arguments) -> str:
    """A config file with which `parse_arguments` gives the same: what differs from the defaults, but secrets."""
    changed = {
        name: value
        for given, plain in zip(arguments, parse_arguments([]), strict=True)
        for name, value in vars(given).items()
        if value != vars(plain)[name] and not name.endswith("_token")
    }
    plain_values = json.loads(json.dumps(changed, default=str))
    return "# The run of this folder, once more: v2pe train run.yaml --output_dir ANOTHER\n" + yaml.safe_dump(
        plain_values, sort_keys=False, allow_unicode=True, width=1000
    )


def _refuse_moved_flags(given: Namespace) -> None:
    for flag in TRAINING_FLAGS:
        check_flag(flag, getattr(given, flag), TRAINING_FLAGS)
    for flag, use in FIXED_TRAINING_FLAGS.items():
        # The enum that transformers uses for strategies equals its string value.
        if getattr(given, flag) != getattr(transformers.TrainingArguments, flag):
            raise ConfigError(f"--{flag} {getattr(given, flag)} {use}")


def _find_deepspeed_config(given: Any) -> Any:
    """The file itself, or ours of that name (`zero3`), or ours with the settings of the public code's file."""
    if not isinstance(given, str) or Path(given).exists():
        return given
    moved = DEEPSPEED_CONFIGS.get(Path(given).name)
    name = Path(str(moved.taken_as)).stem if moved else given
    ours = find_shipped("shell/deepspeed") / f"{name}.json"
    return str(ours) if ours.is_file() else given


def build_training_arguments(
    training: Namespace, *, grad_checkpoint: bool = False, offload_activations: bool = False
) -> TrainingArguments:
    """Build transformers' object from validated values: chooses the device and reads the DeepSpeed file.

    Raises:
        ConfigError: transformers refuses a value or a combination of values.
    """
    values = dict(vars(training))
    if values["warmup_ratio"]:
        values["warmup_steps"] = values["warmup_ratio"]
    if grad_checkpoint:
        values["activation_checkpointing"] = True
        # On a CPU there is nothing to move, and pinning needs a GPU.
        if offload_activations and has_cuda() and not values["use_cpu"]:
            values["activation_checkpointing_kwargs"] = {"use_reentrant": False, "offload": True}
    if values["disable_tqdm"] is None:
        values["disable_tqdm"] = not sys.stderr.isatty()
    values["remove_unused_columns"] = False
    if not values["use_cpu"]:
        values["use_cpu"] = not has_cuda()
    try:
        return TrainingArguments(**values)
    except ValueError as error:
        raise ConfigError(f"training arguments: {error}") from error


def has_cuda() -> bool:
    """Whether this machine has a GPU."""
    import torch

    return torch.cuda.is_available()


def shares_rows(model: ModelArguments) -> bool:
    """Whether attention runs over the process grid (a grid of one rank included)."""
    return model.chunk_num > 1 or model.attn_type in ("ring", "ulysses")


def ulysses_degree_of(model: ModelArguments) -> int:
    """Ranks among which the heads of a shared row are split."""
    if model.ulysses_degree is not None:
        return model.ulysses_degree
    return model.chunk_num if model.attn_type == "ulysses" else 1
