"""Results as pages: one per run, with plots, and docs/gpu.md with the newest of every card."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.machine import ROOT
from internvl.atomic import open_atomically
from internvl.errors import ConfigError
from internvl.markdown import format_table

RESULTS = ROOT / "benchmarks/results/gpu"
PAGE = ROOT / "docs/gpu.md"
Result = dict[str, Any]  # what __main__ writes

_TINY = (
    "**Tiny sizes on a CPU.** This run shows that the check works. Its numbers say nothing about a GPU, and those of "
    "speed nothing about this project."
)
_NO_RESULTS = (
    "**Nothing has been measured on a card yet.** No GPU was available to this project so far. On a CPU every part of\n"
    "the check runs at tiny size (`tests/benchmarks/test_gpu_check.py`), which leaves the kernels for CUDA untested."
)
_INTRODUCTION = """# A check of your GPUs

<!-- run by: tests/benchmarks/test_gpu_check.py::test_every_part_runs_without_a_card -->
```bash
make gpu-check          # python -m benchmarks.gpu_check: at most 10 minutes
```

runs on a machine with one or more NVIDIA cards what only a card can show, and writes
`benchmarks/results/gpu/DATE-CARD.json`, a page beside it (`.md`) and plots (`.svg`). `--parts kernels ring` runs some
parts only, `--minutes 5` sets another limit (a part that no longer fits is skipped, with the reason), and `--output`
another folder. Every part runs in a process of its own: one that fails is reported and the others go on; the exit code
is then 1. `python -m benchmarks.gpu_check --page` makes this page from the newest result of every card.

| part | what it does |
| --- | --- |
{parts}

The planner's numbers are those of [`python -m internvl.plan`](long_context.md#what-fits-where) for the same row on one
card without ZeRO. MFU counts the FLOPs of forward and backward pass, without recomputation, over the peak in
`internvl/plan/cards.py`. Weights are random; neither speed nor memory depends on their values.

## A machine without network

On a machine with network, the same operating system and the same Python:

<!-- dry run -->
```bash
sh scripts/gather_wheels.sh wheels --cuda       # requirements.txt, requirements-dev.txt, requirements-cuda.txt
```

puts into one folder all wheels that are needed (torch's CUDA build brings NVIDIA's libraries along, several GB), and
prints the line that installs them from there. Only NVIDIA's driver must be on the machine itself; a C compiler is
used where there is one (triton needs it to fuse the elementwise functions). Neither model weights nor data are needed.

## Results
"""


def load_results(folder: Path = RESULTS) -> list[Result]:
    """The newest result of every card.

    Raises:
        ConfigError: A file is of a run on the CPU.
    """
    newest: dict[str, Result] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        result = json.loads(path.read_text())
        if result["tiny"]:
            raise ConfigError(f"{path}: a run of tiny sizes on a CPU; only results of cards belong here, remove it")
        newest[result["machine"]["card"]] = result | {"name": path.stem}
    return list(newest.values())


def make_page(results: Iterable[Result], parts: dict[str, str]) -> str:
    """The text of docs/gpu.md; `parts` says what every part does."""
    lines = "\n".join(f"| `{name}` | {text} |" for name, text in parts.items())
    sections = [describe_result(result, heading="###", folder="../benchmarks/results/gpu/") for result in results]
    return "\n".join([_INTRODUCTION.format(parts=lines), *(sections or [_NO_RESULTS + "\n"])])


def describe_result(result: Result, *, heading: str = "#", folder: str = "") -> str:
    """A run in Markdown; plots lie in `folder`."""
    machine = result["machine"]
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if value and name not in ("card", "date"))
    blocks = [f"{heading} {machine['card'] or 'No card'}, {machine['date']}", facts + "."]
    if result["tiny"]:
        blocks.insert(1, _TINY)
    if result["parts"].get("training", {}).get("rows"):
        blocks.append(f"![Speed and memory of training steps by length of the row]({folder}{result['name']}.svg)")
    for name, part in result["parts"].items():
        reason = f": {part['reason']}" if part.get("reason") else ""
        blocks.append(f"{heading}# {name}: {part['state']} in {part['seconds']:.0f} s{reason}")
        if part["rows"]:
            blocks.append(format_rows(part["rows"]))
    return "\n\n".join(blocks) + "\n"


def format_rows(rows: list[dict[str, Any]]) -> str:
    """A table with a column for every heading of any row, without those that are empty."""
    headings = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    lines = [[_format_cell(row.get(name)) for name in headings] for row in rows]
    return format_table([list(headings), *lines], is_padded=False)


def _format_cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def draw_plots(result: Result, path: Path) -> None:
    """Tokens per second, and memory measured and planned, by length of the row."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [row for row in result["parts"].get("training", {}).get("rows", []) if row.get("planned GiB")]
    if not rows:
        return
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, columns in zip(figure.subplots(1, 2), (["tokens/s"], ["peak GiB", "planned GiB"]), strict=True):
        for recomputation, line in (("no", "x"), ("yes", "o-")):
            for column in columns:
                points = sorted(
                    (row["tokens"], row[column])
                    for row in rows
                    if row["recomputation"] == recomputation and isinstance(row.get(column), float)
                )
                if points:
                    axes.plot(*zip(*points, strict=True), line, label=f"{column}, recomputation: {recomputation}")
        axes.set(xlabel="tokens of the row", xscale="log", ylim=(0, None), title=" and ".join(columns))
        axes.legend(fontsize="small")
    where = "tiny sizes on a CPU, no measurement of a GPU" if result["tiny"] else result["machine"]["card"]
    figure.suptitle(f"Training steps: {where}")
    with mpl.rc_context({"svg.hashsalt": "v2pe"}), open_atomically(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
