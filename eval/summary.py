"""The file that a person opens first: all tasks of one result folder in a few lines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.core.store import write_atomically
from eval.tasks.registry import summarise_groups

_KEYS = ("score", "stderr", "count", "num_failed", "num_empty", "chance")


def write_summary(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write `summary.json`: the headline numbers of every task and the groups' own averages.

    Args:
        folder: Result folder of the run.
        results: Contents of the tasks' scores.json.
    """
    tasks = [
        {
            "task": result["task"],
            "protocol": result["protocol"],
            **{key: result["results"][result["protocol"]][key] for key in _KEYS},
        }
        for result in results
    ]
    content = {"tasks": tasks, "groups": summarise_groups(results)}
    write_atomically(folder / "summary.json", json.dumps(content, indent=2) + "\n")
