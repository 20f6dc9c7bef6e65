"""Requirements: packages and devices that flags ask for, looked for before anything is loaded."""

from argparse import Namespace
from importlib.metadata import version
from importlib.util import find_spec

import torch
from packaging.version import Version
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from internvl.errors import ConfigError, MissingDependencyError
from internvl.parallel.kernels import activate_flash, select_kernel
from internvl.parallel.ring import LIBRARY, import_library
from internvl.train.arguments import DataTrainingArguments, ModelArguments, has_cuda, shares_rows
from internvl.train.liger import import_liger_loss

# Part of the name of an optimiser of transformers -> the package that has it, as it is imported.
_OF_OPTIMISERS = {
    "bnb": "bitsandbytes",
    "8bit": "bitsandbytes",
    "paged": "bitsandbytes",
    "apex": "apex",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "schedule_free": "schedulefree",
}
# Reporter -> the release from which transformers' callback for it fails when training begins.
_BROKEN_FROM = {"swanlab": "0.8"}
_NOT_LISTED = ("flyte", "kubeflow")  # which transformers does not look for


def check_requirements(model: ModelArguments, data: DataTrainingArguments, training: Namespace) -> None:
    """Check that this machine has what the flags ask for.

    Raises:
        ConfigError: A flag needs a GPU, or knows another name.
        MissingDependencyError: A package is not installed.
    """
    device = torch.device("cpu" if training.use_cpu or not has_cuda() else "cuda")
    _check_reporters(training.report_to)
    if training.deepspeed:
        _check_package("deepspeed", f"--deepspeed {training.deepspeed}")
    if model.use_llm_lora or model.use_backbone_lora:
        _check_package("peft", "LoRA")
    optimiser = str(getattr(training.optim, "value", training.optim))
    for part, package in _OF_OPTIMISERS.items():
        if part in optimiser:
            _check_package(package, f"--optim {optimiser}")
    if training.tf32 and device.type == "cpu":
        raise ConfigError("--tf32 True needs a GPU; leave it out")
    if data.loss_kernel == "liger":
        if device.type == "cpu":
            raise ConfigError("--loss_kernel liger needs a GPU; use --loss_kernel chunked")
        import_liger_loss()
    if model.flash_impl is not None:
        if device.type == "cpu":
            raise ConfigError(f"--flash_impl {model.flash_impl} needs a GPU; leave it out")
        activate_flash(model.flash_impl)
    if model.attn_kernel is not None:
        _check_kernel(model, device, torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None)


def _check_reporters(wanted: str | list[str] | None) -> None:
    names = [wanted] if isinstance(wanted, str) else wanted or []
    for name in names:
        if name in ("none", "all", *_NOT_LISTED):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(f"--report_to {name}: expected none, all, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in get_available_reporting_integrations():
            raise MissingDependencyError(
                f"--report_to {name}: the package is not installed; pip install {name.replace('_', '-')}, "
                "or use --report_to none"
            )
        if name in _BROKEN_FROM and Version(version(name)) >= Version(_BROKEN_FROM[name]):
            raise MissingDependencyError(
                f"--report_to {name}: transformers cannot report to {name} {version(name)}; "
                f"pip install '{name}<{_BROKEN_FROM[name]}', or use --report_to none"
            )


def _check_package(name: str, user: str) -> None:
    if find_spec(name) is None:
        raise MissingDependencyError(f"{user} needs {name}: pip install {name.replace('_', '-')}")


def _check_kernel(model: ModelArguments, device: torch.device, dtype: torch.dtype | None) -> None:
    if model.attn_kernel == LIBRARY and device.type == "cuda":
        import_library()
    elif model.attn_kernel == LIBRARY:
        raise ConfigError(f"--attn_kernel {LIBRARY} needs a GPU; leave it out")
    else:
        select_kernel(model.attn_kernel, device, dtype or torch.float32)
    if not shares_rows(model):
        raise ConfigError(
            f"--attn_kernel {model.attn_kernel} has no effect without shared rows; leave it out, or add "
            "--attn_type ring (--chunk_num above 1)"
        )
