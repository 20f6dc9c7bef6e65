"""An ablation: `eval.run` with rotary tables rounded to bfloat16, as they are where they have the type of the weights.

    python -m studies.miniature.coarse_tables --out FOLDER+bf16 [arguments of eval.run]

Cosines and sines then have 8 bits, and visual tokens that lie a small stride apart get mostly the same ones. Everything
else stays as it is. Saved settings do not tell such a run from an ordinary one, therefore the name of its result folder
must: it ends in `+bf16`.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.run import __main__ as run
from eval.run.options import parse_options
from internvl.errors import ConfigError, InternVLError
from internvl.model import rotary
from internvl.parallel.launch import finish_distributed

FOLDER_ENDING = "+bf16"


def round_tables(make_tables: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same tables, float32, with the values that bfloat16 has."""

    def make_coarse_tables(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        cos, sin = make_tables(*args, **kwargs)
        return cos.to(torch.bfloat16).to(cos.dtype), sin.to(torch.bfloat16).to(sin.dtype)

    return make_coarse_tables


def check_folder(argv: Sequence[str]) -> None:
    """Refuse a result folder that could be taken for that of an ordinary run.

    Raises:
        ConfigError: `--out` is missing or has another ending.
    """
    out = parse_options(argv).out
    if out is None or not out.name.endswith(FOLDER_ENDING):
        raise ConfigError(f"--out is {out}, expected a folder whose name ends in {FOLDER_ENDING}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit codes as of `eval.run`."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        check_folder(arguments)
    except InternVLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    exact = rotary.rotary_tables
    rotary.rotary_tables = round_tables(exact)
    try:
        return run.main(arguments)
    finally:
        rotary.rotary_tables = exact


if __name__ == "__main__":
    exit_code = main()
    if exit_code in (0, run.EXIT_TOO_MANY_FAILED):
        finish_distributed(exit_code)
    sys.exit(exit_code)
