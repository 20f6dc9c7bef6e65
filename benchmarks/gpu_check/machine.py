"""The machine and the code that results belong to."""

import datetime
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "flash-attn", "triton")


def describe_machine() -> dict[str, str | int | None]:
    """Cards, driver, packages, commit and date; `card` is None without one."""
    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "card": card,
        "cards": torch.cuda.device_count(),
        "memory": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.1f} GiB" if card else None,
        "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0") if card else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **{name: _find_version(name) for name in PACKAGES},
        "commit": _describe_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def name_result(machine: dict[str, str | int | None]) -> str:
    """Of its files: 2026-11-29-nvidia-h200."""
    card = re.sub(r"[^a-z0-9]+", "-", str(machine["card"] or "cpu tiny").lower()).strip("-")
    return f"{machine['date']}-{card}"


def _describe_commit() -> str | None:
    commit = _ask("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if commit and _ask("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"):
        return f"{commit} with changes"
    return commit


def _ask(*command: str) -> str | None:
    """The first line that a command prints; None if it is not there, fails, or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0] or None if done.returncode == 0 else None


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
