"""Names of the public code, as a page: `python -m internvl.tools.migration_page > docs/migration.md`."""

import sys
from collections.abc import Mapping, Sequence

from internvl.command import command
from internvl.markdown import format_table
from internvl.moved_names import (
    ANY,
    DEEPSPEED_CONFIGS,
    EVALUATION_FLAGS,
    FIXED_TRAINING_FLAGS,
    MODULES,
    SCRIPTS,
    TASKS,
    TRAINING_FLAGS,
    Moved,
)
from internvl.parser import CommandParser

_HEAD = """# From the public V2PE code to this one

The command lines of the public README run as they stand: recipes in `shell/internlm2_2b/`, `scripts/evaluate_*.sh`,
data in `data/` and `dataset/`, checkpoints in `pretrained/`. Flags of training and evaluation that are not below are
the same here. Everything below is understood, or refused with the line that the table shows.

`python -m internvl.tools.migration_page` printed this page from `internvl/moved_names.py`, which the parsers read too.
"""
_COMMANDS = """One command runs all evaluations, alone, under torchrun or as slurm tasks. Python says of the old files
only that they do not exist; `python -m eval.vqa.evaluate_vqa` names the new command."""


def write_page() -> str:
    """The whole page as markdown."""
    fixed = {name: Moved(use) for name, use in FIXED_TRAINING_FLAGS.items()}
    sections = [
        ("Scripts", _COMMANDS, _list(SCRIPTS)),
        ("Flags of evaluation", "Names may be written with `-` or `_`.", _list_flags(EVALUATION_FLAGS)),
        (
            "Flags of training",
            "A flag is accepted with the value of the last column.",
            _list_flags(TRAINING_FLAGS | fixed),
        ),
        ("Tasks", "`vqa-docvqa-val` and the other names of `scripts/evaluate.sh` are understood too.", _list(TASKS)),
        ("DeepSpeed files", "A file of the old name is taken where there is one.", _list(DEEPSPEED_CONFIGS)),
        ("Imports", "An ImportError says the same.", _list(MODULES)),
    ]
    return "\n".join([_HEAD, *(f"## {title}\n\n{text}\n\n{table}\n" for title, text, table in sections)])


def _list(table: Mapping[str, Moved]) -> str:
    rows = [[f"`{name}`", moved.use] for name, moved in table.items()]
    return format_table([["name", "here"], *rows], is_padded=False)


def _list_flags(table: Mapping[str, Moved]) -> str:
    rows = [[f"`--{name}`", moved.use, _describe_harmless(moved)] for name, moved in table.items()]
    return format_table([["flag", "here", "accepted"], *rows], is_padded=False)


def _describe_harmless(moved: Moved) -> str:
    if moved.taken_as:
        return ANY
    return "" if moved.harmless is None else ANY if moved.harmless == ANY else f"`{moved.harmless}`"


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; prints the page."""
    CommandParser(prog="python -m internvl.tools.migration_page", description=__doc__).parse_args(argv)
    print(write_page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
