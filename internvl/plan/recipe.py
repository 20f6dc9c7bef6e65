"""Recipe: the command that trains with the flags of a plan, on the recipe for 32k rows."""

import shlex
from dataclasses import fields
from pathlib import Path

from internvl.errors import ConfigError
from internvl.plan.released_models import RELEASED
from internvl.plan.setting import Setting
from internvl.plan.sizes import ModelSizes, Trained

_RECIPE = "shell/internlm2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh"
# Flags of training whose names and meaning a setting shares; the others are variables of the recipe.
_FLAGS = ("ulysses_degree", "keep_attention", "vit_batch_size", "offload_activations", "mlp_tile_tokens")


def format_command(model: ModelSizes, setting: Setting) -> str:
    """The command, to be typed in the repository's folder; data and learning rate are the recipe's.

    Raises:
        ConfigError: The setting answers, or trains without ZeRO, for which there is no DeepSpeed file.
    """
    if setting.mode != "train" or setting.zero_stage == 0:
        raise ConfigError(
            f"--command writes a training command with ZeRO 1, 2 or 3; got --mode {setting.mode} "
            f"--zero_stage {setting.zero_stage}"
        )
    path = Path("pretrained", model.name) if model.name in RELEASED else Path(model.name)
    variables = {
        "MODEL_PATH": path.parent if path.name == "config.json" else path,
        "GPUS": setting.gpus,
        "CHUNK_NUM": setting.chunk_num,
        "MAX_TOKENS": setting.max_packed_tokens,
        "MAX_TILES": max(1, setting.tiles),
        "DEEPSPEED_CONFIG": f"shell/deepspeed/zero{setting.zero_stage}{'_offload' * setting.offload_optimizer}.json",
        "BF16": setting.dtype == "bfloat16",
    }
    own = {name: getattr(setting, name) for name in _FLAGS if getattr(setting, name) != getattr(Setting, name)}
    trained = vars(setting.trained)
    flags = {"grad_checkpoint": setting.grad_checkpoint, **own}
    flags |= {f.name: trained[f.name] for f in fields(Trained) if trained[f.name] != f.default}
    lines = (
        " ".join(f"{name}={shlex.quote(str(value))}" for name, value in variables.items()),
        f"sh {_RECIPE}",
        " ".join(f"--{name} {value}" for name, value in flags.items()),
    )
    return " \\\n    ".join(lines)
