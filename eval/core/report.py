"""Results side by side: one table row per task, setting and context length, as records, markdown or JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.core.scoring import SCORES_NAME
from internvl.errors import EvalError

ALL_LENGTHS = "all"


def find_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Contents of every scores.json below the folders, with its place under `folder`.

    Raises:
        EvalError: A folder without results, or a broken file.
    """
    results = []
    for folder in folders:
        paths = sorted(folder.rglob(SCORES_NAME))
        if not paths:
            raise EvalError(f"{folder} holds no {SCORES_NAME}; expected a result folder of eval.run")
        results += [_read_scores(path) for path in paths]
    return results


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["results"][content["protocol"]]["score"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{path} is broken ({error!r}); make it again with python -m eval.score") from error
    return {**content, "folder": str(path.parent)}


def label_setting(result: Mapping[str, Any]) -> str:
    """The position version in words: `default`, `v2pe_fix stride 1`, `v2pe_fix stride 1 yarn:4`."""
    settings = result["settings"]
    stride, scaling = settings.get("rope_pos_id_stride"), settings.get("rope_scaling")
    label = settings["rope_pos_id_version"] + ("" if stride is None else f" stride {stride}")
    return label if scaling is None else f"{label} {scaling}"


def label_settings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One label per result; what differs between runs with the same positions is added."""
    names = ("checkpoint", "max_num", "prompts", "dtype", "kv_cache")
    values = {name: {str(result["settings"].get(name)) for result in results} for name in names}
    labels = []
    for result in results:
        parts = [label_setting(result)]
        for name in names:
            if len(values[name]) > 1 and name in result["settings"]:
                value = (
                    Path(result["info"]["checkpoint"]).name if name == "checkpoint" else result["settings"].get(name)
                )
                parts.append(f"{name} {value}")
        labels.append(", ".join(parts))
    return labels


def tabulate(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record per task, setting and context length, and one over all lengths.

    Returns:
        Records of `task`, `setting`, `protocol`, `checkpoint`, `rope_pos_id_version`, `rope_pos_id_stride`, `length`
        (label), `low`, `high` (tokens), `accuracy`, `stderr`, `count`, `chance`.
    """
    rows = []
    for result, label in zip(results, label_settings(results), strict=True):
        numbers = result["results"][result["protocol"]]
        common = {
            "task": result["task"],
            "setting": label,
            "protocol": result["protocol"],
            "checkpoint": result["info"].get("checkpoint"),
            "rope_pos_id_version": result["settings"].get("rope_pos_id_version"),
            "rope_pos_id_stride": result["settings"].get("rope_pos_id_stride"),
        }
        for entry in [*numbers.get("by_length", []), {**numbers, "low": None, "high": None, "is_total": True}]:
            rows.append(
                {
                    **common,
                    "length": ALL_LENGTHS if entry.get("is_total") else label_length(entry["low"], entry["high"]),
                    "low": entry["low"],
                    "high": entry["high"],
                    "accuracy": entry["score"],
                    "stderr": entry["stderr"],
                    "count": entry["count"],
                    "chance": entry["chance"],
                }
            )
    return rows


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


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table: a line per task and setting, a column per context length, chance at the end."""
    lengths = order_lengths(rows)
    table = [["task", "positions", "protocol", *lengths, "chance"]]
    for names, cells in group_rows(rows).items():
        texts = [format_cell(cells[length]) if length in cells else "-" for length in lengths]
        table.append([*names, *texts, format_chance(cells[ALL_LENGTHS]["chance"])])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    padded = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in table]
    return "\n".join([padded[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *padded[1:]])


def format_chance(chance: float | None) -> str:
    """A chance level, `?` where it is not known."""
    return "?" if chance is None else f"{chance:.3f}"
