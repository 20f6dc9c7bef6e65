"""The file that a person opens first: all tasks of one result folder in a few lines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.core.output import write_result
from eval.core.scoring import SCORES_NAME
from eval.tasks.registry import summarise_groups

_KEYS = ("score", "stderr", "count", "num_failed", "num_empty", "chance")


def write_summary(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write `summary.json`: the headline numbers of every task and the groups' own averages.

    Tasks that were scored into the same folder before stay in it.

    Args:
        folder: Result folder of the run.
        results: Contents of the tasks' scores.json.
    """
    own = {result["task"] for result in results}
    earlier = (scores for scores in _read_scores(folder) if scores["task"] not in own)
    results = [*results, *sorted(earlier, key=lambda scores: scores["task"])]
    content = {"tasks": [_summarise_task(result) for result in results], "groups": summarise_groups(results)}
    write_result(folder / "summary.json", json.dumps(content, indent=2) + "\n")


def _read_scores(folder: Path) -> list[dict[str, Any]]:
    """Scores of this run that lie below the folder as `TASK/scores.json`; those of other runs in it are left out."""
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob(SCORES_NAME)}
    return [scores for path, scores in found.items() if path.parent == folder / scores["task"]]


def _summarise_task(result: Mapping[str, Any]) -> dict[str, Any]:
    """Headline numbers, score and standard error by protocol, and what blind answers get under the headline's."""
    headline = result["results"][result["protocol"]]
    return {
        "task": result["task"],
        "version": result["version"],
        "protocol": result["protocol"],
        **{key: headline[key] for key in _KEYS},
        "scores": {protocol: numbers["score"] for protocol, numbers in result["results"].items()},
        "stderrs": {protocol: numbers["stderr"] for protocol, numbers in result["results"].items()},
        "floors": headline.get("floors"),
    }
