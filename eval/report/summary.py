"""Summary of a run: summary.json, the file that a person opens first, has all tasks in a few lines."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from eval.core.output import write_result
from eval.core.result import SCORES_NAME, TaskResult, read_result
from eval.tasks.registry import summarise_groups


def write_summary(folder: Path, results: Sequence[TaskResult]) -> None:
    """Write `summary.json`: the headline numbers of every task and the groups' own averages.

    `results`, scored just now, come first; tasks scored into the folder before stay in it.
    Raises EvalError if a scores.json in the folder is broken.
    """
    own = {result.task for result in results}
    found = map(read_result, folder.rglob(SCORES_NAME))
    # Results of other runs may lie below the folder too, such as a checkpoint's; they have summaries of their own.
    earlier = [result for result in found if result.folder == folder / result.task and result.task not in own]
    results = [*results, *sorted(earlier, key=lambda result: result.task)]
    content = {
        "tasks": [_summarise_task(result) for result in results],
        "groups": summarise_groups([result.content for result in results]),
    }
    write_result(folder / "summary.json", json.dumps(content, indent=2) + "\n")


def _summarise_task(result: TaskResult) -> dict[str, object]:
    """Headline numbers and baselines, then score and standard error under every rule."""
    headline = result.headline
    return {
        "task": result.task,
        "version": result.version,
        "protocol": result.protocol,
        "score": headline.score,
        "interval": None if headline.estimate is None else headline.estimate.interval,
        "stderr": headline.stderr,
        "needs_judge": headline.needs_judge,
        "count": headline.count,
        "num_failed": headline.num_failed,
        "num_empty": headline.num_empty,
        "chance": headline.chance,
        "scores": {protocol: scores.score for protocol, scores in result.scores.items()},
        "stderrs": {protocol: scores.stderr for protocol, scores in result.scores.items()},
        "floors": None if headline.baselines is None else asdict(headline.baselines),
    }
