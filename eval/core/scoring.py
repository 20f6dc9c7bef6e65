"""From predictions to numbers, without a model: every score comes with its standard error, count and protocol."""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.core.baselines import measure_floors
from eval.core.output import write_result
from eval.core.sample import Prediction
from eval.core.task import Scored, Task
from eval.metrics.estimate import estimate_mean
from eval.metrics.protocol import read_protocol
from internvl.errors import ConfigError, EvalError

SCORES_NAME = "scores.json"


def check_length_edges(edges: Sequence[int]) -> None:
    """Raise ConfigError unless `edges` rises from a positive number."""
    if not edges or edges[0] <= 0 or any(a >= b for a, b in pairwise(edges)):
        raise ConfigError(f"length bins must be rising token counts such as 1000 2000 4000, got {list(edges)}")


def score_by_length(scored: Sequence[Scored], edges: Sequence[int]) -> list[dict[str, Any]]:
    """Estimate per bin of `metadata["context_length"]`; bins without samples are left out.

    Returns:
        Rows of `low` and `high` (tokens; None: open), `score`, `stderr`, `count`, `chance`.
    """
    bins: dict[int, list[Scored]] = {}
    for item in scored:
        bins.setdefault(bisect_right(edges, item.metadata["context_length"]), []).append(item)
    rows = []
    for index, items in sorted(bins.items()):
        estimate = estimate_mean([item.score for item in items])
        rows.append(
            {
                "low": edges[index - 1] if index else None,
                "high": edges[index] if index < len(edges) else None,
                **vars(estimate),
                "chance": mean_chance([item.metadata for item in items]),
            }
        )
    return rows


def mean_chance(metadata: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean chance level; None when it is not known for every sample."""
    levels = [entry.get("chance") for entry in metadata]
    known = [level for level in levels if level is not None]
    return math.fsum(known) / len(known) if levels and len(known) == len(levels) else None


def score_predictions(
    task: Task, predictions: Sequence[Prediction], *, protocol: str, length_edges: Sequence[int] | None = None
) -> dict[str, Any]:
    """Score one task under one protocol.

    A failed sample stays in the denominator and is wrong, also under rules that take an empty response for a right one.
    Where no answer is public (all are None) there is no score.

    Returns:
        `score`, `stderr` (both None without answers), `count`, `num_failed`, `num_empty`, `chance`, and what the
        task's own aggregation adds.
    """
    if predictions and all(prediction.answer is None for prediction in predictions):
        return {"score": None, "stderr": None, **_count(predictions)}
    scored = []
    for prediction in predictions:
        score = score_prediction(task, prediction, protocol=protocol)
        scored.append(
            Scored(score, prediction.metadata, prediction.answer, prediction.response, read_protocol(protocol))
        )
    return {
        **vars(estimate_mean([item.score for item in scored])),
        **_count(predictions),
        **task.aggregate(scored, length_edges),
    }


def score_prediction(task: Task, prediction: Prediction, *, protocol: str) -> float:
    """Score of one prediction in 0..1; 0 for a failed one.

    Raises:
        EvalError: The task's rule cannot take the answer.
    """
    if prediction.failure is not None:
        return 0.0
    try:
        return task.score_answer(prediction.answer, prediction.response, read_protocol(protocol))
    except (TypeError, ValueError) as error:
        raise EvalError(f"{task.name}, sample {prediction.id!r}: cannot be scored: {error}") from error


def score_with_floors(
    task: Task, predictions: Sequence[Prediction], *, protocol: str, length_edges: Sequence[int] | None = None
) -> dict[str, Any]:
    """As `score_predictions`, with `floors` (see `measure_floors`) beside a score."""
    numbers = score_predictions(task, predictions, protocol=protocol, length_edges=length_edges)
    if numbers["score"] is None:
        return numbers

    def measure(blind: Sequence[Prediction]) -> float:
        return score_predictions(task, blind, protocol=protocol, length_edges=length_edges)["score"]

    return {**numbers, "floors": measure_floors(predictions, measure)}


def _count(predictions: Sequence[Prediction]) -> dict[str, Any]:
    return {
        "count": len(predictions),
        "num_failed": sum(prediction.failure is not None for prediction in predictions),
        "num_empty": sum(not prediction.response.strip() for prediction in predictions),
        "chance": mean_chance([prediction.metadata for prediction in predictions]),
    }


def write_scores(
    folder: Path,
    task: Task,
    predictions: Sequence[Prediction],
    *,
    settings: Mapping[str, Any],
    info: Mapping[str, Any],
    protocol: str | None = None,
    length_edges: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Score a task under all of its protocols and write `scores.json`, and the file to upload if the task has one.

    Args:
        folder: Result folder of the task.
        task: The task.
        predictions: All of its predictions.
        settings: What they were made with.
        info: Further facts for readers.
        protocol: The protocol whose score is the task's headline; None for the task's first.
        length_edges: Borders of context-length bins in tokens; None for the task's own.

    Raises:
        ConfigError: The task has no such protocol.
    """
    headline = protocol if protocol is not None else task.protocols[0]
    if headline not in task.protocols:
        raise ConfigError(f"{task.name} has the protocols {', '.join(task.protocols)}, got {headline!r}")
    results = {
        name: score_with_floors(task, predictions, protocol=name, length_edges=length_edges) for name in task.protocols
    }
    content = {
        "task": task.name,
        "version": settings.get("task_version", task.version),
        "source": task.source,
        "protocol": headline,
        "settings": dict(settings),
        "info": dict(info),
        "results": results,
    }
    if task.upload is not None:
        write_result(folder / task.upload.name, task.upload.render(predictions))
    write_result(folder / SCORES_NAME, json.dumps(content, indent=2) + "\n")
    return content
