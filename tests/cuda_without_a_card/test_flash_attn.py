"""Our arguments against the real interface of flash-attn 2.8, from its source distribution (pip fetches it)."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from . import programs

PACKAGE = "flash-attn>=2.8,<2.9"


@pytest.fixture(scope="module")
def interface(tmp_path_factory) -> Path:
    """`flash_attn_interface.py`, without what would have to be compiled."""
    folder = tmp_path_factory.mktemp("flash_attn")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    result = subprocess.run(
        [*command, "--no-build-isolation", PACKAGE, "--dest", str(folder)],
        env={**os.environ, "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        pytest.skip(f"pip cannot fetch {PACKAGE} here: {result.stderr.strip().splitlines()[-1:]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        (member,) = [name for name in files.getnames() if name.endswith("/flash_attn/flash_attn_interface.py")]
        files.extract(member, folder, filter="data")
    return folder / member


@pytest.mark.slow
@pytest.mark.parametrize("borders", [None, (0, 20, 64)], ids=["dense", "packed"])
def test_flash_attn_takes_our_arguments(without_a_card, interface, borders):
    out, lse, grads = without_a_card(programs.run_flash_attn, str(interface), borders)
    num_keys = 40 if borders is None else 64
    assert out == (64, 16, 128)
    assert lse == ((16, 64), "torch.float32", "cuda")
    assert grads == [(64, 16, 128), (num_keys, 8, 128), (num_keys, 8, 128)]
