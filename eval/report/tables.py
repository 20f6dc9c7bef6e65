"""Results side by side: one table row per task, setting and context length, as records, markdown or JSON."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.core.scoring import SCORES_NAME
from eval.metrics.estimate import Estimate
from eval.metrics.protocol import PROTOCOLS
from internvl.data.natural_order import natural_key
from internvl.errors import EvalError

ALL_LENGTHS = "all"
AVERAGE = "average"  # in the place of a length: a mean over several tasks
AVERAGE_JOINT = " / "  # in names of such means
_TOLD_APART = ("checkpoint", "max_num", "prompts", "dtype", "kv_cache")


@dataclass(frozen=True)
class ComparedRow:
    """One model in a table of several.

    Attributes:
        name: Of the model, or of an own run.
        kind: Its size as published, or the scoring rule of an own run.
        cells: By column: percent and its standard error (None where none was published).
        note: What a reader should know.
        source: Where the numbers are from.
        is_own: Whether it was measured here.
    """

    name: str
    kind: str
    cells: Mapping[str, tuple[float, float | None]]
    note: str = ""
    source: str = ""
    is_own: bool = False


@dataclass(frozen=True)
class Comparison:
    """Own runs beside published rows.

    Attributes:
        title: Of the table.
        columns: Benchmarks.
        rows: Published ones first.
        notes: What the columns mean where the name does not say it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    notes: tuple[str, ...] = field(default=())


def find_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Contents of every scores.json below the folders, each once, with its place under `folder`.

    In the order of the folders and of names inside them, where numbers count as numbers (`eval_16` before `eval_256`).

    Raises:
        EvalError: A folder without results, or a broken file.
    """
    results: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        paths = sorted(folder.rglob(SCORES_NAME), key=lambda path: natural_key(str(path), decimals=True))
        if not paths:
            raise EvalError(f"{folder} holds no {SCORES_NAME}; expected a result folder of eval.run")
        for path in paths:
            if path.resolve() not in results:
                results[path.resolve()] = _read_scores(path)
    return list(results.values())


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["results"][content["protocol"]]["score"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{path} is broken ({error!r}); make it again with python -m eval.score") from error
    return {**content, "folder": str(path.parent)}


def label_setting(result: Mapping[str, Any]) -> str:
    """The position version in words: `default`, `v2pe_fix stride 1`, `v2pe_fix stride 1 yarn:4 log-n:192`."""
    settings = result["settings"]
    stride, scaling = settings.get("rope_pos_id_stride"), settings.get("rope_scaling")
    label = settings["rope_pos_id_version"] + ("" if stride is None else f" stride {stride}")
    label = label if scaling is None else f"{label} {scaling}"
    logn = settings.get("logn_scaling")
    return label if logn is None else f"{label} log-n:{logn}"


def label_settings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One label per result, never the same for two results of one task.

    What differs between results of one task with the same positions is added: settings first, then folders.
    """
    labels = _label_by(_TOLD_APART, results)
    if _are_unique(labels, results):
        return labels
    runs = [_find_run(result) for result in results]
    root = os.path.commonpath([run.parent for run in runs])
    return [f"{label}, {run.relative_to(root)}" for label, run in zip(labels, runs, strict=True)]


def label_runs(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One label per result, the same for all tasks of one run (or of runs that differ in tasks alone).

    The largest number of tiles, which has a default of its own for every task, is named only where it must be.
    """
    labels = _label_by([name for name in _TOLD_APART if name != "max_num"], results)
    return labels if _are_unique(labels, results) else label_settings(results)


def _label_by(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Positions, and those of the named settings that differ between results of one task."""
    names = [name for name in names if _differs(name, results)]
    labels = []
    for result in results:
        facts = {name: result["settings"].get(name) for name in names}
        if "checkpoint" in facts:
            facts["checkpoint"] = Path(result["info"].get("checkpoint") or str(facts["checkpoint"])).name
        parts = [f"{name} {value}" for name, value in facts.items() if value is not None]
        labels.append(", ".join([label_setting(result), *parts]))
    return labels


def _are_unique(labels: Sequence[str], results: Sequence[Mapping[str, Any]]) -> bool:
    return len({(result["task"], label) for result, label in zip(results, labels, strict=True)}) == len(labels)


def _differs(name: str, results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two results of one task have different values of a setting."""
    values: dict[str, set[str]] = {}
    for result in results:
        values.setdefault(result["task"], set()).add(str(result["settings"].get(name)))
    return any(len(found) > 1 for found in values.values())


def _find_run(result: Mapping[str, Any]) -> Path:
    """The result folder of the run, `RUN` of `RUN/GROUP/TASK`."""
    folder, name = Path(result.get("folder", "")).resolve(), Path(result["task"])
    return folder.parents[len(name.parts) - 1] if folder.parts[-len(name.parts) :] == name.parts else folder


def tabulate(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record per task, setting and context length under the headline protocol, and one over all lengths.

    Returns:
        Records of `task`, `setting`, `protocol`, `version`, `checkpoint`, `rope_pos_id_version`, `rope_pos_id_stride`,
        `length` (label), `low`, `high` (tokens), `accuracy`, `stderr`, `count`, `chance`; those over all lengths also
        of `num_failed`, `num_empty` and `floors`.
    """
    labels = label_settings(results)
    return [
        row
        for result, label in zip(results, labels, strict=True)
        for row in _tabulate_protocol(result, label, result["protocol"])
    ]


def tabulate_protocols(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As `tabulate`, under every protocol."""
    labels = label_settings(results)
    return [
        row
        for result, label in zip(results, labels, strict=True)
        for protocol in result["results"]
        for row in _tabulate_protocol(result, label, protocol)
    ]


def tabulate_averages(averages: Mapping[str, Mapping[str, Estimate]]) -> list[dict[str, Any]]:
    """One record per run and mean over several tasks, for `format_csv`.

    Args:
        averages: Run -> name (`milebench / separate / official / by_set / T`) -> mean.

    Returns:
        Records of `task` (the name without its protocol), `setting`, `protocol`, `length` (`average`), `accuracy`,
        `stderr` and `count`.
    """
    rows = []
    for label, estimates in averages.items():
        for name, estimate in estimates.items():
            parts = name.split(AVERAGE_JOINT)
            rows.append(
                {
                    "task": AVERAGE_JOINT.join(part for part in parts if part not in PROTOCOLS),
                    "setting": label,
                    "protocol": next((part for part in parts if part in PROTOCOLS), ""),
                    "length": AVERAGE,
                    "accuracy": estimate.score,
                    "stderr": estimate.stderr,
                    "count": estimate.count,
                }
            )
    return rows


def _tabulate_protocol(result: Mapping[str, Any], label: str, protocol: str) -> list[dict[str, Any]]:
    numbers = result["results"][protocol]
    common = {
        "task": result["task"],
        "setting": label,
        "protocol": protocol,
        "version": result.get("version"),
        "checkpoint": result["info"].get("checkpoint"),
        "rope_pos_id_version": result["settings"].get("rope_pos_id_version"),
        "rope_pos_id_stride": result["settings"].get("rope_pos_id_stride"),
    }
    whole = {key: numbers.get(key) for key in ("num_failed", "num_empty", "floors")}
    return [
        *(
            {**common, "length": label_length(entry["low"], entry["high"]), **_read_numbers(entry)}
            for entry in numbers.get("by_length", [])
        ),
        {**common, "length": ALL_LENGTHS, **_read_numbers({**numbers, "low": None, "high": None}), **whole},
    ]


def _read_numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("low", "high", "stderr", "count", "chance")
    return {"accuracy": entry["score"], **{key: entry[key] for key in keys}}


def format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Records of `tabulate` as comma-separated values with a header line; floors in columns of their own."""
    columns = [
        *("task", "setting", "protocol", "version", "checkpoint", "rope_pos_id_version", "rope_pos_id_stride"),
        *("length", "low", "high", "accuracy", "stderr", "count", "num_failed", "num_empty", "chance"),
        *("floor_empty", "floor_letter", "floor_letter_score", "floor_majority", "floor_majority_score"),
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, **_flatten_floors(row.get("floors") or {})})
    return file.getvalue()


def _flatten_floors(floors: Mapping[str, Any]) -> dict[str, Any]:
    if not floors:
        return {}
    best = {name: floors[name] or {} for name in ("letter", "majority")}
    return {
        "floor_empty": floors["empty"],
        **{f"floor_{name}": entry.get("response") for name, entry in best.items()},
        **{f"floor_{name}_score": entry.get("score") for name, entry in best.items()},
    }


def label_length(low: int | None, high: int | None) -> str:
    """`<1k`, `1k-2k`, `64k+`."""
    if low is None:
        return f"<{format_tokens(high or 0)}"
    return f"{format_tokens(low)}-{format_tokens(high)}" if high is not None else f"{format_tokens(low)}+"


def format_tokens(num_tokens: int) -> str:
    """`4000` -> `4k`, `1500` -> `1500`."""
    return f"{num_tokens // 1000}k" if num_tokens >= 1000 and num_tokens % 1000 == 0 else str(num_tokens)


def group_rows(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[str, Mapping[str, Any]]]:
    """Records by (task, setting, protocol), then by length label: the lines of a table."""
    lines: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["task"], row["setting"], row["protocol"]), {})[row["length"]] = row
    return lines


def order_lengths(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Length labels from short to long, all lengths last."""
    lengths = {row["length"]: (row["length"] == ALL_LENGTHS, row["low"] or 0) for row in rows}
    return sorted(lengths, key=lambda label: lengths[label])


def format_cell(row: Mapping[str, Any]) -> str:
    """`0.925 ±0.019 (n 200)`; without public answers the count alone."""
    if row["accuracy"] is None:
        return f"no answers (n {row['count']})"
    return f"{row['accuracy']:.3f} ±{row['stderr']:.3f} (n {row['count']})"


def format_averages(averages: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A markdown table: a line per mean over several tasks, a column per run; empty where there is none."""
    names = list_average_names(averages)
    lines = [[name, *(format_estimate(numbers.get(name)) for numbers in averages.values())] for name in names]
    return _format_markdown([["mean", *averages], *lines]) if lines else ""


def list_average_names(averages: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """Names of all means, each once."""
    return list(dict.fromkeys(name for numbers in averages.values() for name in numbers))


def format_estimate(estimate: Estimate | None) -> str:
    """`0.925 ±0.019 (n 200)`, or `-`."""
    return "-" if estimate is None else f"{estimate.score:.3f} ±{estimate.stderr:.3f} (n {estimate.count})"


def format_comparison(table: Comparison) -> str:
    """A markdown table with its title and notes; percent, own numbers with their standard errors."""
    lines = [["model", "", *table.columns]]
    for row in table.rows:
        name = f"**{row.name}**" if row.is_own else row.name
        lines.append([name, row.kind, *(format_percent(row.cells.get(column)) for column in table.columns)])
    notes = [*table.notes, *(f"{row.name}: {row.note}." for row in table.rows if row.note)]
    return "\n".join([f"## {table.title}", "", _format_markdown(lines), "", *(f"- {note}" for note in notes), ""])


def format_percent(cell: tuple[float, float | None] | None) -> str:
    """`73.5`, `73.5 ±1.2`, or `-`."""
    if cell is None:
        return "-"
    return f"{cell[0]:.1f}" if cell[1] is None else f"{cell[0]:.1f} ±{cell[1]:.1f}"


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table: a line per task and setting, a column per context length, chance at the end."""
    lengths = order_lengths(rows)
    table = [["task", "positions", "protocol", *lengths, "chance"]]
    for names, cells in group_rows(rows).items():
        texts = [format_cell(cells[length]) if length in cells else "-" for length in lengths]
        table.append([*names, *texts, format_chance(cells[ALL_LENGTHS]["chance"])])
    return _format_markdown(table)


def _format_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A markdown table from its cells, the first line is the header."""
    table = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    padded = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in table]
    return "\n".join([padded[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *padded[1:]])


def format_chance(chance: float | None) -> str:
    """A chance level, `?` where it is not known."""
    return "?" if chance is None else f"{chance:.3f}"
