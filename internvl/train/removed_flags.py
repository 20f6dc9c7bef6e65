"""Flags of the public V2PE recipes that have no effect here, and what to use instead.

They are parsed, so that old command lines run as long as a flag has its old default; another value is an error that
says what to do.
"""

from argparse import Namespace
from dataclasses import field, make_dataclass

import transformers

from internvl.errors import ConfigError

_COMPRESSION = "belonged to an abandoned sequence-compression experiment; remove the flag"
_ASSEMBLE = "belongs to `python -m internvl.tools.assemble`; give what it makes as --model_name_or_path"
_NO_EVALUATION = "is not available: evaluate checkpoints with scripts/evaluate_mmniah.sh and its like"
_EVALUATION = "must be no: evaluate checkpoints with scripts/evaluate_mmniah.sh and its like"

# Flag -> (its old default, what to use).
REMOVED: dict[str, tuple[bool | int | float | str | None, str]] = {
    "compress_seq": (False, _COMPRESSION),
    "interaction": (True, _COMPRESSION),
    "fuse_method": ("add", _COMPRESSION),
    "compress_method": ("avg", _COMPRESSION),
    "final_size": (100, _COMPRESSION),
    "neftune_alpha": (None, "was stored and never read; use --neftune_noise_alpha"),
    "strict_mode": (False, "padded rows to full length; rows are never padded here, remove the flag"),
    "replacement": (False, "is the only behaviour: data continues with the next epoch; remove the flag"),
    "allow_overflow": (False, "cut documents to fit a row; raise --max_packed_tokens instead"),
    "group_by_length": (False, "has no meaning for packed rows; remove the flag"),
    "evaluation_strategy": ("no", _EVALUATION),
    "vision_path": (None, _ASSEMBLE),
    "llm_path": (None, _ASSEMBLE),
    "use_custom_trainer": (
        False,
        "chose layer-wise learning-rate decay; use --vit_layer_decay_rate, --vision_learning_rate and "
        "--mlp_learning_rate, which need no such switch",
    ),
    "scale": (25.0, "(learning-rate factor of layer scales) is not available; remove the flag"),
    "img_emb_down_sample_ratio": (None, "is not available; set --down_sample_ratio as the checkpoint has it"),
}
# Flags of transformers' TrainingArguments that must keep its default.
REFUSED: dict[str, str] = {
    "eval_strategy": _EVALUATION,
    "label_smoothing_factor": "is not available: the loss is computed inside the model; remove the flag",
    "auto_find_batch_size": "is not available: a batch is one row; lower --max_packed_tokens instead",
    "do_eval": _NO_EVALUATION,
    "do_predict": _NO_EVALUATION,
    "load_best_model_at_end": "needs evaluation during training, which is not available; remove the flag",
}

RemovedArguments = make_dataclass(
    "RemovedArguments",
    [
        (flag, str if default is None else type(default), field(default=default, metadata={"help": f"Removed: {use}."}))
        for flag, (default, use) in REMOVED.items()
    ],
)


def refuse_removed_flags(given: Namespace) -> None:
    """Check that no removed flag asks for something.

    Raises:
        ConfigError: A flag has another value than its default; the message says what to use.
    """
    kept = {flag: (getattr(transformers.TrainingArguments, flag), use) for flag, use in REFUSED.items()}
    for flag, (default, use) in {**REMOVED, **kept}.items():
        # The enum that transformers uses for strategies equals its string value.
        if getattr(given, flag) != default:
            raise ConfigError(f"--{flag} {getattr(given, flag)} {use}")
