"""Markdown tables of the study, and the page that holds them.

A cell is the mean over seeds with its worst and best seed.
"""

import re
from collections.abc import Sequence

from eval.study.cells import DIGITS, GROUPS, Cell, list_lengths, list_settings, select_cells, summarise
from internvl.errors import EvalError

TITLES = {"text": "word of a sentence", "digits": "first and second digit of a picture"}
GAIN_LENGTH = 16
GAIN_EVALUATION = "stride_1-16"
CONTROL, TRAINED = "default", "rnd_image"


def format_tables(cells: Sequence[Cell]) -> str:
    """All tables: what training gains, the evaluations without options, and those with options (`+...`)."""
    settings = list_settings(cells)
    usual = [pair for pair in settings if "+" not in pair[1]]
    further = [pair for pair in settings if "+" in pair[1]]
    parts = [format_gain(cells)]
    for title, members in (("", usual), (", further evaluations", further)):
        parts += [_format_group(cells, group, members, title) for group in GROUPS]
    return "\n\n".join(part for part in parts if part)


def format_gain(cells: Sequence[Cell]) -> str:
    """What `rnd_image` gains over the control on the digits at 16x, by seed; empty where one of both is missing."""

    def score(method: str, seed: int) -> float | None:
        found = select_cells(cells, questions=DIGITS, method=method, evaluation=GAIN_EVALUATION, length=GAIN_LENGTH)
        own = [cell for cell in found if cell.seed == seed]
        return summarise(own).mean if own else None

    rows = []
    for seed in sorted({cell.seed for cell in cells}):
        control, trained = score(CONTROL, seed), score(TRAINED, seed)
        if control is not None and trained is not None:
            rows.append(_join_row([str(seed), f"{control:.3f}", f"{trained:.3f}", f"{trained - control:+.3f}"]))
    if not rows:
        return ""
    head = [
        f"**digits at {GAIN_LENGTH}x, both asked with `{GAIN_EVALUATION}`, by seed**",
        "",
        _join_row(["seed", f"`{CONTROL}`", f"`{TRAINED}`", "gain"]),
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _format_group(cells: Sequence[Cell], group: str, settings: Sequence[tuple[str, str]], title: str) -> str:
    lengths = list_lengths(cells)
    head = [
        f"**{TITLES[group]}{title}** (mean over seeds, worst to best seed)",
        "",
        _join_row(["trained with", "asked with", "seeds", *(f"{length}x" for length in lengths)]),
        "|" + "---|" * (3 + len(lengths)),
    ]
    rows = []
    for method, evaluation in settings:
        members = select_cells(cells, questions=GROUPS[group], method=method, evaluation=evaluation)
        if members:
            texts = [_format_cell([cell for cell in members if cell.length == length]) for length in lengths]
            seeds = str(len({cell.seed for cell in members}))
            rows.append(_join_row([f"`{method}`", f"`{evaluation}`", seeds, *texts]))
    return "\n".join([*head, *rows]) if rows else ""


def _join_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _format_cell(cells: Sequence[Cell]) -> str:
    if not cells:
        return "-"
    summary = summarise(cells)
    if summary.num_seeds == 1:
        return f"{summary.mean:.3f}"
    return f"{summary.mean:.3f} ({summary.least:.2f}..{summary.most:.2f})"


def update_page(text: str, name: str, tables: str) -> str:
    """A page with the tables of the results file `name` between its marks.

    Raises:
        EvalError: The page has no such marks, or has them twice.
    """
    begin, end = f"<!-- tables: {name} -->", "<!-- end of tables -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    new, count = pattern.subn(lambda _: f"{begin}\n\n{tables}\n\n{end}", text)
    if count != 1:
        raise EvalError(f"the page has {count} times {begin!r} ... {end!r}, expected it once")
    return new
