"""Labels: what the runs of a report are called, short but never the same for two results of one task."""

import os
from collections.abc import Sequence
from pathlib import Path

from eval.core.result import Settings, TaskResult

# Settings that are added to a label where two results differ in them.
_DISTINGUISHING = ("checkpoint", "model", "max_num", "prompts", "dtype", "kv_cache")


def label_setting(settings: Settings) -> str:
    """How positions are made, in words: `default`, `v2pe_fix stride 1`, `v2pe_fix stride 1 yarn:4 log-n:192`."""
    parts = [settings.rope_pos_id_version]
    if settings.rope_pos_id_stride is not None:
        parts.append(f"stride {settings.rope_pos_id_stride}")
    if settings.rope_scaling is not None:
        parts.append(settings.rope_scaling)
    if settings.logn_scaling is not None:
        parts.append(f"log-n:{settings.logn_scaling}")
    return " ".join(parts)


def label_settings(results: Sequence[TaskResult]) -> list[str]:
    """One label per result, never the same for two results of one task.

    Equal positions get the settings that differ added, and equal settings the folders.
    """
    labels = _label_by(_DISTINGUISHING, results)
    if _are_unique(labels, results):
        return labels
    runs = [result.run_folder for result in results]
    root = os.path.commonpath([run.parent for run in runs])
    return [f"{label}, {run.relative_to(root)}" for label, run in zip(labels, runs, strict=True)]


def label_runs(results: Sequence[TaskResult]) -> list[str]:
    """One label per result, the same for all tasks of one run (and of runs that differ only in their tasks)."""
    # Every task has a default of its own for the largest number of tiles, so it is named only where it must be.
    labels = _label_by([name for name in _DISTINGUISHING if name != "max_num"], results)
    return labels if _are_unique(labels, results) else label_settings(results)


def _label_by(names: Sequence[str], results: Sequence[TaskResult]) -> list[str]:
    """Positions, and those of the named settings that differ between results of one task."""
    names = [name for name in names if _differs(name, results)]
    labels = []
    for result in results:
        facts = {name: result.settings.values.get(name) for name in names}
        if "checkpoint" in facts:
            facts["checkpoint"] = Path(result.info.get("checkpoint") or str(facts["checkpoint"])).name
        parts = [f"{name} {value}" for name, value in facts.items() if value is not None]
        labels.append(", ".join([label_setting(result.settings), *parts]))
    return labels


def _are_unique(labels: Sequence[str], results: Sequence[TaskResult]) -> bool:
    return len({(result.task, label) for result, label in zip(results, labels, strict=True)}) == len(labels)


def _differs(name: str, results: Sequence[TaskResult]) -> bool:
    """Whether two results of one task have different values of a setting."""
    values: dict[str, set[str]] = {}
    for result in results:
        values.setdefault(result.task, set()).add(str(result.settings.values.get(name)))
    return any(len(found) > 1 for found in values.values())
