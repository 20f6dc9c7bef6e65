"""Recipe: the command that trains with the flags of a plan, on the recipe for 32k rows."""

import shlex
from dataclasses import fields
from pathlib import Path

from internvl.errors import ConfigError
from internvl.plan.released_models import RELEASED
from internvl.plan.setting import Setting
from internvl.plan.sizes import ModelSizes, Trained

_RECIPE = "internvl2_2b_32k.yaml"
_MOST_OF_A_MACHINE = 8  # GPUs; more of them are on several machines, where shell/launch.sh starts processes
# Flags of training whose names and meaning a setting shares, and that are left out where they say nothing.
_FLAGS = ("ulysses_degree", "keep_attention", "vit_batch_size", "offload_activations", "mlp_tile_tokens")


def format_command(model: ModelSizes, setting: Setting) -> str:
    """The command; data and learning rate are the recipe's. One for several machines is typed in the repository.

    Raises:
        ConfigError: The setting answers, or trains without ZeRO, for which there is no DeepSpeed file.
    """
    if setting.mode != "train" or setting.zero_stage == 0:
        raise ConfigError(
            f"--command writes a training command with ZeRO 1, 2 or 3; got --mode {setting.mode} "
            f"--zero_stage {setting.zero_stage}"
        )
    path = Path("pretrained", model.name) if model.name in RELEASED else Path(model.name)
    flags = {
        "model_name_or_path": path.parent if path.name == "config.json" else path,
        "max_seq_length": setting.max_packed_tokens,
        "max_packed_tokens": setting.max_packed_tokens,
        "num_images_expected": max(1, setting.tiles),
        "deepspeed": f"zero{setting.zero_stage}{'_offload' * setting.offload_optimizer}",
        "bf16": setting.dtype == "bfloat16",
        "grad_checkpoint": setting.grad_checkpoint,
        "chunk_num": setting.chunk_num,
    }
    flags |= {name: getattr(setting, name) for name in _FLAGS if getattr(setting, name) != getattr(Setting, name)}
    trained = vars(setting.trained)
    flags |= {f.name: trained[f.name] for f in fields(Trained) if trained[f.name] != f.default}
    begin = f"v2pe train --processes {setting.gpus} {_RECIPE}"
    if setting.gpus > _MOST_OF_A_MACHINE:
        begin = f"GPUS={setting.gpus} sh shell/launch.sh examples/{_RECIPE}"
    return " \\\n    ".join([begin, *(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())])
