"""Strict loading of weights: none may be missing, none may be left over.

A checkpoint without some parameter would run with random numbers in its place, and one with a weight too many
(adapters, an extra module) would answer without it. Both are errors that list the names. Buffers that older code saved,
and that follow from the config, are ignored.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig

from .checkpoint_folder import check_files, check_size, find_checkpoint, list_weights, read_json
from .configuration_internvl_chat import InternVLChatConfig
from .errors import CheckpointError, InternVLError, summarise

logger = logging.getLogger(__name__)

ModelType = TypeVar("ModelType")  # no bound: Auto classes are not models


class LoadReport(TypedDict):
    """What `from_pretrained` tells about keys of the weights."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]


# Buffers that older code saved: rotary frequencies of a layer, 0 1 2 ... positions.
_HARMLESS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids)$")
_MOST_NAMES = 20


def read_chat_config(folder: str | Path) -> InternVLChatConfig:
    """The config of a chat model's folder.

    Raises:
        CheckpointError: It is missing, broken, or that of another kind of model.
        ConfigError: It asks for what is not supported (architecture, rope scaling, ...).
    """
    path = find_checkpoint(folder) / "config.json"
    fields = read_json(path)
    absent = [name for name in ("vision_config", "llm_config") if not isinstance(fields.get(name), dict)]
    if absent:
        raise CheckpointError(
            f"{path} does not describe an InternVL chat model: {' and '.join(absent)} missing "
            f"(model_type {fields.get('model_type')!r}); a bare language model becomes one by "
            "python -m internvl.tools.assemble"
        )
    try:
        config = cast(InternVLChatConfig, InternVLChatConfig.from_dict(fields))
    except InternVLError:
        raise
    except Exception as error:  # wrong values meet transformers' own checks
        raise CheckpointError(f"{path} cannot be used: {summarise(error)}; expected an InternVL2 config") from error
    config.name_or_path = str(path.parent)
    return config


def load_strictly(
    model_class: type[ModelType],
    folder: str | Path,
    *,
    config: PretrainedConfig | None = None,
    state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | str = "auto",
    flag: str | None = None,
) -> ModelType:
    """A model in evaluation mode whose parameters all come from the weights, with no weight left over.

    Args:
        model_class: Class to build (an Auto class of transformers will do).
        folder: Checkpoint folder (safetensors or pytorch_model.bin, sharded or not); only named in errors when
            `state` is given.
        config: Config; None: the folder's.
        state: Weights to use instead of the folder's.
        dtype: Of the weights; `auto`: as they are stored.
        flag: The option that names the folder, for errors.

    Raises:
        CheckpointError: Weights cannot be read, are missing, unknown or of another shape. Rotary buffers and
            `position_ids` may be left over, and one of two tied weights may be missing.
    """
    name = f"{flag} {folder}" if flag else str(folder)
    if state is None:
        folder = find_checkpoint(folder)
        check_files(folder)
        if config is not None:
            check_size(config, list_weights(folder))
    arguments: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, "dtype": dtype}
    if config is not None:
        arguments["config"] = config
    if state is not None:
        arguments["state_dict"] = dict(state)
        if dtype == "auto":
            arguments["dtype"] = next(iter(state.values())).dtype
    try:
        with _no_load_report():
            loaded = cast(Any, model_class).from_pretrained(str(folder) if state is None else None, **arguments)
    except InternVLError:
        raise
    except Exception as error:  # what a broken file raises is a class of its own in every library that reads one
        raise CheckpointError(
            f"the weights of {name} cannot be loaded: {summarise(error)}; copy the checkpoint again"
        ) from error
    model, report = loaded
    _check_report(report, name, type(model).__name__)
    return model.eval()


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Silence transformers' own table of such keys, which calls harmless what is an error here."""
    library = logging.getLogger("transformers.modeling_utils")

    def is_wanted(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    library.addFilter(is_wanted)
    try:
        yield
    finally:
        library.removeFilter(is_wanted)


def _check_report(report: LoadReport, folder: str, model_name: str) -> None:
    missing = sorted(report["missing_keys"])
    unknown = sorted(key for key in report["unexpected_keys"] if not _HARMLESS.search(key))
    if len(unknown) < len(report["unexpected_keys"]):
        logger.info("%s: %d buffers of older code passed over", folder, len(report["unexpected_keys"]) - len(unknown))
    if any(".lora_" in key for key in unknown):
        raise CheckpointError(
            f"{folder} holds LoRA adapters; fold them in first: python -m internvl.tools.merge_lora {folder} OUT"
        )
    shapes = [
        f"{key} is {tuple(found)}, expected {tuple(expected)}"
        for key, found, expected in sorted(report["mismatched_keys"])
    ]
    kinds = {"missing keys": missing, "unexpected keys": unknown, "weights of another shape": shapes}
    problems = [f"{len(found)} {kind}: {_list_names(found)}" for kind, found in kinds.items() if found]
    if problems:
        raise CheckpointError(
            f"the weights of {folder} do not fit {model_name}: {'; '.join(problems)}; expected exactly the weights "
            "that its config.json describes"
        )


def _list_names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
