"""An ablation: `eval.run` with cosines and sines of positions rounded to bfloat16, as in many implementations.

    python -m studies.miniature.coarse_rotary --out FOLDER+bf16 [arguments of eval.run]

Rounded tables have 8 bits, so visual tokens that lie a small stride apart mostly get the same entries. Nothing else
changes. Saved settings do not show the rounding, so the name of the result folder must: it ends in `+bf16`.
"""

import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec
from unittest.mock import patch

import torch
from torch import Tensor

from eval.run import __main__ as run
from eval.run.options import parse_options
from internvl.command import command
from internvl.errors import ConfigError
from internvl.model import rotary
from internvl.parallel.launch import finish_distributed

FOLDER_ENDING = "+bf16"
Arguments = ParamSpec("Arguments")


def round_tables(
    make_tables: Callable[Arguments, tuple[Tensor, Tensor]],
) -> Callable[Arguments, tuple[Tensor, Tensor]]:
    """The same tables, still float32, but with values that bfloat16 can hold."""

    def make_coarse_tables(*args: Arguments.args, **kwargs: Arguments.kwargs) -> tuple[Tensor, Tensor]:
        cos, sin = make_tables(*args, **kwargs)
        return cos.to(torch.bfloat16).to(cos.dtype), sin.to(torch.bfloat16).to(sin.dtype)

    return make_coarse_tables


def check_folder(argv: Sequence[str]) -> None:
    """Refuse an ordinary result folder: raises ConfigError if `--out` is missing or has another ending."""
    out = parse_options(argv).out
    if out is None or not out.name.endswith(FOLDER_ENDING):
        raise ConfigError(f"--out is {out}, expected a folder whose name ends in {FOLDER_ENDING}")


@command(go_on="start the same command again to continue")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit codes are those of `eval.run`."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    check_folder(arguments)
    with patch.object(rotary, "rotary_tables", round_tables(rotary.rotary_tables)):
        return run.main(arguments)


if __name__ == "__main__":
    exit_code = main()
    if exit_code in (0, run.EXIT_TOO_MANY_FAILED):
        finish_distributed(exit_code)
    sys.exit(exit_code)
