"""Estimate a job before it starts: memory per GPU by item, work, messages, time; what to change if it does not fit.

    python -m internvl.plan --model InternVL2-2B --max_packed_tokens 32768 --tiles 64 --gpus 8
    python -m internvl.plan --model InternVL2-2B --max_packed_tokens 262144 --tiles 512 --gpus 32 \\
        --chunk_num 8 --zero_stage 1 --grad_checkpoint True --vit_batch_size 16
    python -m internvl.plan --model InternVL2-8B --use_llm_lora 16 --freeze_backbone True --gpus 1 --gpu A100-80G
    python -m internvl.plan --model InternVL2-2B --mode infer --max_packed_tokens 1048576 --tiles 2048 \\
        --gpus 8 --chunk_num 8 --prefill_chunk_size 65536
    python -m internvl.plan --gpu A100-80G --table > table.md        # what fits on such cards, and what does not
    python -m internvl.plan --gpu A100-80G --gpus 8 --tiles 64 --fastest --command      # how to train one of its rows

Everything is computed from sizes (formulas: memory.py, cost.py, traffic.py); nothing is measured. Flags have the names
that training knows. Rates, by card or given, and `--reserve_gib` are assumptions about the machine.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any, get_args

from internvl.command import command
from internvl.errors import ConfigError
from internvl.model.caches import KV_CACHES
from internvl.options import describe_option
from internvl.parser import CommandParser
from internvl.plan.recipe import format_command
from internvl.plan.released_models import RELEASED
from internvl.plan.report import describe_plan, format_advice, format_overview, format_plan
from internvl.plan.search import find_changes, find_fastest, find_gpus, make_plan
from internvl.plan.setting import Setting
from internvl.plan.sizes import Trained, read_sizes


def _read_switch(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: expected True or False")


_CHOICES = {"mode": ("train", "infer"), "dtype": ("bfloat16", "float32"), "kv_cache": KV_CACHES}


def build_parser() -> argparse.ArgumentParser:
    """The command line: an option per field of `Setting` and of `Trained`."""
    parser = CommandParser(
        prog="python -m internvl.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default="InternVL2-2B", help=f"checkpoint folder, config.json, or one of {', '.join(RELEASED)}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; sizes in bytes, times in seconds")
    parser.add_argument("--table", action="store_true", help="print the table of docs/long_context.md (Markdown)")
    parser.add_argument(
        "--fastest", action="store_true", help="change flags so that the job fits and trains most tokens per second"
    )
    parser.add_argument("--command", action="store_true", help="print only the command that trains so")
    for record in (Setting, Trained):
        for entry in fields(record):
            if entry.name != "trained":
                _add_option(parser, entry)
    return parser


def _add_option(parser: argparse.ArgumentParser, entry: Field[Any]) -> None:
    name, default, text = f"--{entry.name}", entry.default, describe_option(entry, otherwise="As in training")
    if isinstance(default, bool):
        parser.add_argument(name, type=_read_switch, default=default, nargs="?", const=True, help=text)
    else:
        kind = get_args(entry.type)[0] if default is None else type(default)  # of `int | None`: int
        parser.add_argument(name, type=kind, default=default, choices=_CHOICES.get(entry.name), help=text)


def build_setting(arguments: argparse.Namespace) -> Setting:
    """The setting that the command line asks for.

    Raises:
        ConfigError: A flag is out of range, or contradicts another.
        ParallelError: GPUs, `chunk_num` and `ulysses_degree` do not fit.
    """
    trained = Trained(**{f.name: getattr(arguments, f.name) for f in fields(Trained)})
    own = {f.name: getattr(arguments, f.name) for f in fields(Setting) if f.name != "trained"}
    return Setting(**own, trained=trained)


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns 0 if the job fits, 1 if not, 2 for wrong flags."""
    arguments = build_parser().parse_args(argv)
    setting = build_setting(arguments)
    if arguments.table:
        sys.stdout.write(format_overview(setting) + "\n")
        return 0
    plan = make_plan(read_sizes(arguments.model), setting)
    if arguments.fastest:
        plan = find_fastest(plan.model, setting) or plan
    if arguments.command:
        if not plan.fits:
            raise ConfigError(
                "--command: the job does not fit; add --fastest, or leave --command out for what to change"
            )
        sys.stdout.write(format_command(plan.model, plan.setting) + "\n")
        return 0
    plans = [] if plan.fits else find_changes(plan.model, setting)
    larger = find_gpus(plan.model, setting) if not plan.fits and not plans else None
    if arguments.json:
        sys.stdout.write(json.dumps(describe_plan(plan, plans, larger), indent=2) + "\n")
    else:
        text = format_plan(plan) + ("" if plan.fits else "\n" + format_advice(plan, plans, larger))
        sys.stdout.write(text + "\n")
    return 0 if plan.fits else 1


if __name__ == "__main__":
    sys.exit(main())
