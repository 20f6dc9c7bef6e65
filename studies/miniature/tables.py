"""Tables of the study, and the markdown page that holds them."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from internvl import markdown
from internvl.errors import EvalError
from studies.miniature.cells import (
    DIGITS,
    GROUPS,
    OWN,
    Cell,
    list_groups,
    list_lengths,
    list_settings,
    select_cells,
    summarise,
)

TITLES = {
    "text": "word of a sentence",
    "digits": "first and second digit of a picture",
    "order": "first or second digit, in opposite corners",
    "sides": "left or right digit, in opposite corners",
}
LONG = 16  # length of the tables by seed
SMALL_STRIDE = "stride_1-16"
CONTROL, TRAINED = "default", "rnd_image"
COMPARED_LENGTHS = (1, 16, 32)  # of the tables that compare many settings


@dataclass(frozen=True)
class Table:
    """A table whose texts may have markdown's code marks."""

    title: str  # what it shows
    note: str  # what its numbers are
    head: tuple[str, ...]  # names of the columns
    rows: tuple[tuple[str, ...], ...]  # as many texts each


def build_tables(cells: Sequence[Cell]) -> list[Table]:
    """All tables that have a row: by seed, training against inference positions, what options change, every setting."""
    settings = list_settings(cells)
    usual = [pair for pair in settings if "+" not in pair[1]]
    further = [pair for pair in settings if "+" in pair[1]]
    tables = [
        tabulate_gain(cells),
        tabulate_words(cells),
        *(tabulate_matrix(cells, group) for group in GROUPS),
        tabulate_effects(cells),
        tabulate_schemes(cells),
        *(_tabulate_settings(cells, group, usual, TITLES[group]) for group in GROUPS),
        *(_tabulate_settings(cells, group, further, f"{TITLES[group]}, further evaluations") for group in GROUPS),
    ]
    return [table for table in tables if table.rows]


def tabulate_gain(cells: Sequence[Cell]) -> Table:
    """What `rnd_image` gains over the control on the digits of long contexts, by seed; other methods stand beside it.

    Seeds that lack one of the two are left out.
    """
    found = [
        cell
        for cell in cells
        if (cell.evaluation, cell.length) == (SMALL_STRIDE, LONG) and cell.question in DIGITS
    ]  # fmt: skip
    others = [method for method in dict.fromkeys(cell.method for cell in found) if method not in (CONTROL, TRAINED)]
    rows = []
    for seed, scores in _score_by_seed(found, (CONTROL, TRAINED, *others)).items():
        if CONTROL in scores and TRAINED in scores:
            gain = f"{scores[TRAINED] - scores[CONTROL]:+.3f}"
            rest = (_format_score(scores.get(method)) for method in others)
            rows.append((str(seed), _format_score(scores[CONTROL]), _format_score(scores[TRAINED]), gain, *rest))
    return Table(
        f"digits at {LONG}x by seed",
        f"all asked with `{SMALL_STRIDE}`; the gain is that of `{TRAINED}` over `{CONTROL}`",
        ("seed", f"`{CONTROL}`", f"`{TRAINED}`", "gain", *(f"`{method}`" for method in others)),
        tuple(rows),
    )


def tabulate_words(cells: Sequence[Cell]) -> Table:
    """Words of long contexts by seed, of the control and `rnd_image`, at ordinary positions and a small stride."""
    settings = [(method, evaluation) for evaluation in (SMALL_STRIDE, CONTROL) for method in (CONTROL, TRAINED)]
    columns = {
        pair: _score_by_seed(
            select_cells(cells, questions=GROUPS["text"], method=pair[0], evaluation=pair[1], length=LONG), (pair[0],)
        )
        for pair in settings
    }
    seeds = sorted({seed for scores in columns.values() for seed in scores})
    rows = [
        (str(seed), *(_format_score(scores.get(seed, {}).get(method)) for (method, _), scores in columns.items()))
        for seed in seeds
    ]
    return Table(
        f"words at {LONG}x by seed",
        "accuracy",
        ("seed", *(f"`{method}` asked with `{evaluation}`" for method, evaluation in settings)),
        tuple(rows),
    )


def _score_by_seed(cells: Sequence[Cell], methods: Sequence[str]) -> dict[int, dict[str, float]]:
    """Seed -> method -> mean of its cells."""
    scores: dict[int, dict[str, float]] = {}
    for seed in sorted({cell.seed for cell in cells}):
        for method in methods:
            own = [cell for cell in cells if (cell.seed, cell.method) == (seed, method)]
            if own:
                scores.setdefault(seed, {})[method] = summarise(own).mean
    return scores


def tabulate_matrix(cells: Sequence[Cell], group: str) -> Table:
    """Training (rows) against inference positions (columns) on a group of questions, without options."""
    cells = [cell for cell in cells if cell.question in GROUPS[group] and "+" not in cell.evaluation]
    lengths = _list_compared(cells)
    methods = list(dict.fromkeys(method for method, _ in list_settings(cells)))
    # Taken as cells of one method, evaluations come in the order of their strides.
    evaluations = [evaluation for _, evaluation in list_settings([replace(cell, method="") for cell in cells])]
    at_lengths = " / ".join(f"{length}x" for length in lengths)
    num_seeds = len({cell.seed for cell in cells})

    def describe(method: str, evaluation: str) -> str:
        members = [cell for cell in cells if (cell.method, cell.evaluation) == (method, evaluation)]
        by_length = [[cell for cell in members if cell.length == length] for length in lengths]
        text = " / ".join(f"{summarise(own).mean:.2f}" if own else "-" for own in by_length)
        seeds = len({cell.seed for cell in members})
        return f"{text} ({seeds})" if members and seeds < num_seeds else text

    rows = [(f"`{method}`", *(describe(method, name) for name in evaluations)) for method in methods]
    return Table(
        f"{TITLES[group]}: training against inference positions",
        f"at {at_lengths}; mean over {num_seeds} seeds, else their number in brackets",
        ("trained with", *(f"asked with `{name}`" for name in evaluations)),
        tuple(rows) if len(methods) > 1 and len(evaluations) > 1 and lengths else (),
    )


def tabulate_effects(cells: Sequence[Cell]) -> Table:
    """What options (`+...`) change: asked with them minus asked without, over the seeds that have both."""
    pairs = [
        ((method, evaluation), (method, evaluation.partition("+")[0]))
        for method, evaluation in list_settings(cells)
        if "+" in evaluation
    ]
    head, rows = _tabulate_gains(cells, pairs)
    return Table(
        "what an option changes",
        "asked with it minus asked without it; mean over seeds, worst to best seed",
        ("trained with", "asked with", *head),
        tuple((f"`{method}`", f"`{evaluation}`", *row) for ((method, evaluation), _), row in rows),
    )


def tabulate_schemes(cells: Sequence[Cell]) -> Table:
    """What other positions change, each asked with its own: against the control, and a stride against none."""
    methods = [method for method, evaluation in list_settings(cells) if evaluation == OWN]
    bases = [(method, CONTROL) for method in methods if method != CONTROL]
    bases += [(method, method.partition("_stride_")[0]) for method in methods if "_stride_" in method]
    head, rows = _tabulate_gains(cells, [((method, OWN), (base, OWN)) for method, base in bases])
    return Table(
        "what other positions change",
        f"the first minus the second, both asked with `{OWN}`; mean over seeds, worst to best seed",
        ("trained with", "minus", *head),
        tuple((f"`{method}`", f"`{base}`", *row) for ((method, _), (base, _)), row in rows),
    )


Setting = tuple[str, str]  # method, evaluation


def _tabulate_gains(
    cells: Sequence[Cell], pairs: Sequence[tuple[Setting, Setting]]
) -> tuple[list[str], list[tuple[tuple[Setting, Setting], tuple[str, ...]]]]:
    """First settings minus second ones, of the pairs that seeds have both of: the columns' names, then rows by pair."""
    columns = [(group, length) for group in list_groups(cells) for length in _list_compared(cells)]
    rows = []
    for pair in pairs:
        gains = [_list_gains(cells, *pair, GROUPS[group], length) for group, length in columns]
        num_seeds = max(map(len, gains), default=0)
        if num_seeds:
            rows.append((pair, (str(num_seeds), *map(_format_gains, gains))))
    return ["seeds", *(f"{group} {length}x" for group, length in columns)], rows


def _list_compared(cells: Sequence[Cell]) -> list[int]:
    return [length for length in list_lengths(cells) if length in COMPARED_LENGTHS]


def _list_gains(
    cells: Sequence[Cell], changed: Setting, plain: Setting, questions: Sequence[str], length: int
) -> list[float]:
    """Accuracy of one setting minus that of another, by seed."""

    def score(setting: Setting) -> Mapping[int, float]:
        method, evaluation = setting
        found = select_cells(cells, questions=questions, method=method, evaluation=evaluation, length=length)
        return {seed: scores[method] for seed, scores in _score_by_seed(found, (method,)).items()}

    after, before = score(changed), score(plain)
    return [after[seed] - before[seed] for seed in sorted(after.keys() & before.keys())]


def _tabulate_settings(cells: Sequence[Cell], group: str, settings: Sequence[tuple[str, str]], title: str) -> Table:
    lengths = list_lengths(cells)
    rows = []
    for method, evaluation in settings:
        members = select_cells(cells, questions=GROUPS[group], method=method, evaluation=evaluation)
        if members:
            texts = [_format_cells([cell for cell in members if cell.length == length]) for length in lengths]
            rows.append((f"`{method}`", f"`{evaluation}`", str(len({cell.seed for cell in members})), *texts))
    return Table(
        title,
        "mean over seeds, worst to best seed",
        ("trained with", "asked with", "seeds", *(f"{length}x" for length in lengths)),
        tuple(rows),
    )


def _format_score(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _format_gains(gains: Sequence[float]) -> str:
    if not gains:
        return "-"
    # Adding zero makes -0.0 positive, which would print as -0.00.
    mean, least, most = (f"{round(gain, 2) + 0.0:+.2f}" for gain in (statistics.fmean(gains), min(gains), max(gains)))
    return mean if len(gains) == 1 else f"{mean} ({least}..{most})"


def _format_cells(cells: Sequence[Cell]) -> str:
    if not cells:
        return "-"
    summary = summarise(cells)
    if summary.num_seeds == 1:
        return f"{summary.mean:.3f}"
    return f"{summary.mean:.3f} ({summary.least:.2f}..{summary.most:.2f})"


def format_table(table: Table) -> str:
    """The table in markdown, below its title."""
    lines = markdown.format_table([table.head, *table.rows], is_padded=False)
    return f"**{table.title}** ({table.note})\n\n{lines}"


def format_tables(cells: Sequence[Cell]) -> str:
    """Markdown of all tables."""
    return "\n\n".join(format_table(table) for table in build_tables(cells))


def update_page(text: str, name: str, tables: str) -> str:
    """A page with new tables between the marks of the results file `name`.

    Raises EvalError if the page has no such marks, or has them twice.
    """
    begin, end = f"<!-- tables: {name} -->", "<!-- end of tables -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    new, count = pattern.subn(lambda _: f"{begin}\n\n{tables}\n\n{end}", text)
    if count != 1:
        raise EvalError(f"the page has {count} times {begin!r} ... {end!r}, expected it once")
    return new
