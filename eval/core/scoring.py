"""Scoring: turns predictions into scores.json, without a model.

    predictions --score_answer--> scored answers --mean, aggregate--> numbers of a rule --+--> scores.json
                --constant answers instead, the same way--> baselines of that rule -------+

Every score comes with its standard error, its count and its scoring rule.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from eval.core.baselines import measure_baselines
from eval.core.judge import JudgeRule
from eval.core.output import write_result
from eval.core.records import JsonObject
from eval.core.result import SCORES_NAME, LengthBin, TaskResult, explain_damage, read_result
from eval.core.sample import Prediction
from eval.core.task import Scored, Task
from eval.metrics.bins import find_bin, format_tokens
from eval.metrics.estimate import estimate_mean
from eval.metrics.mm_niah import DEPTH_STEP, NUM_DEPTHS, Grid, build_grid
from eval.metrics.protocol import read_protocol
from internvl.errors import ConfigError, EvalError, MissingDependencyError

logger = logging.getLogger(__name__)

# Left edges of bins in tokens, those of MM-NIAH and further ones.
LENGTH_EDGES = (
    *(1000, 2000, 4000, 8000, 12_000, 16_000, 24_000, 32_000, 40_000, 48_000, 64_000),
    *(128_000, 256_000, 512_000),
)
LONG_CONTEXT = 8000  # tokens; tasks whose questions are all shorter get bins only where they are asked for
_REMEDY = "its gold answer or metadata is damaged: answer it again with eval.run"


def check_length_edges(edges: Sequence[int]) -> None:
    """Raise ConfigError unless `edges` rises from a positive number."""
    if not edges or edges[0] <= 0 or any(a >= b for a, b in pairwise(edges)):
        raise ConfigError(f"length bins must be rising token counts such as 1000 2000 4000, got {list(edges)}")


def score_by_length(scored: Sequence[Scored], edges: Sequence[int]) -> list[dict[str, object]]:
    """The `LengthBin`s of `metadata["context_length"]` as JSON objects. Bins without samples are left out."""
    bins: dict[int, list[Scored]] = {}
    for item in scored:
        bins.setdefault(find_bin(item.metadata["context_length"], edges), []).append(item)
    rows = []
    for index, items in sorted(bins.items()):
        row = LengthBin(
            low=edges[index - 1] if index else None,
            high=edges[index] if index < len(edges) else None,
            **vars(estimate_mean([item.score for item in items])),
            chance=mean_chance([item.metadata for item in items]),
        )
        rows.append(asdict(row))
    return rows


def score_by_place(scored: Sequence[Scored], edges: Sequence[int] | None) -> dict[str, object]:
    """`by_length`, and of the questions with `metadata["placed_depth"]` `by_depth_and_length` (a `DepthGrid`).

    Nothing where lengths are not known, or all short and no `edges` given.
    """
    if any(item.metadata.get("context_length") is None for item in scored):
        return {}
    if edges is None and max(item.metadata["context_length"] for item in scored) < LONG_CONTEXT:
        return {}
    edges = edges or LENGTH_EDGES
    places: dict[str, object] = {"by_length": score_by_length(scored, edges)}
    # Questions that the document does not answer, or whose answer is not in one place, have no depth.
    placed = [item for item in scored if item.metadata.get("placed_depth") is not None]
    if placed:
        rows = ((item.metadata["context_length"], item.metadata["placed_depth"], item.score) for item in placed)
        places["by_depth_and_length"] = describe_grid(build_grid(rows, edges))
    return places


def describe_grid(grid: Grid) -> dict[str, object]:
    """A `DepthGrid` as a JSON object, with the sums of squares that standard errors are made from."""
    return {
        "lengths": [f"<{format_tokens(grid.edges[0])}", *map(format_tokens, grid.edges)],
        "depths": [round(cell * DEPTH_STEP, 1) for cell in range(NUM_DEPTHS)],
        "score_sums": grid.score_sums,
        "square_sums": grid.square_sums,
        "counts": grid.counts,
    }


def mean_chance(metadata: Sequence[JsonObject]) -> float | None:
    """Mean chance level; None when it is not known for every sample."""
    levels = [entry.get("chance") for entry in metadata]
    known = [level for level in levels if level is not None]
    return math.fsum(known) / len(known) if levels and len(known) == len(levels) else None


def score_predictions(
    task: Task, predictions: Sequence[Prediction], *, protocol: str, length_edges: Sequence[int] | None = None
) -> JsonObject:
    """Numbers of one task under one protocol.

    A failed sample stays in the denominator and is wrong, even under rules that reward an empty response. The numbers
    are `score`, `stderr` (both None where no answer is public), `count`, `num_failed`, `num_empty`, `chance`, and what
    the task's own aggregation adds. Of a task whose answers a judge scores: `by_rule` if there is such a rule; and
    without a verdict on every answer `needs_judge`, no score, and nothing of the aggregation.
    """
    counts = _count(predictions)
    if task.judge is not None:
        counts |= _score_by_rule(task.judge, predictions)
        if any(needs_verdict(prediction) for prediction in predictions):
            return {"score": None, "stderr": None, **counts, "needs_judge": task.judge.name}
    elif predictions and all(prediction.answer is None for prediction in predictions):
        return {"score": None, "stderr": None, **counts}
    scored = []
    for prediction in predictions:
        score = score_prediction(task, prediction, protocol=protocol)
        scored.append(
            Scored(score, prediction.metadata, prediction.answer, prediction.response, read_protocol(protocol))
        )
    with explain_damage(f"{task.name}: the answers cannot be averaged", _REMEDY):
        return {
            **vars(estimate_mean([item.score for item in scored])),
            **counts,
            **score_by_place(scored, length_edges),
            **task.aggregate(scored, length_edges),
        }


def score_prediction(task: Task, prediction: Prediction, *, protocol: str) -> float:
    """Score of one prediction in 0..1; 0 if failed.

    Raises EvalError if the rule cannot take the answer, or a judge is needed and has not scored it.
    """
    if prediction.failure is not None:
        return 0.0
    if task.judge is not None:
        if prediction.verdict is None:
            raise EvalError(f"{task.name}, sample {prediction.id!r}: no judge has scored it; pass --judge")
        return prediction.verdict
    with explain_damage(f"{task.name}, sample {prediction.id!r}: cannot be scored", _REMEDY):
        return task.score_answer(prediction.answer, prediction.response, read_protocol(protocol))


def needs_verdict(prediction: Prediction) -> bool:
    """Whether a judge has yet to score an answer; failed ones are wrong without."""
    return prediction.failure is None and prediction.verdict is None


def _score_by_rule(judge: JudgeRule, predictions: Sequence[Prediction]) -> dict[str, object]:
    """`by_rule`, if there is a rule besides the judge."""
    if judge.by_rule is None:
        return {}
    with explain_damage(f"judge rule {judge.name}: the answers cannot be scored by rule", _REMEDY):
        scores = [
            0.0 if prediction.failure is not None else judge.by_rule(prediction.answer, prediction.response)
            for prediction in predictions
        ]
    return {"by_rule": vars(estimate_mean(scores))}


def score_with_baselines(
    task: Task, predictions: Sequence[Prediction], *, protocol: str, length_edges: Sequence[int] | None = None
) -> JsonObject:
    """As `score_predictions`, with the baselines where a rule makes the score; a judge is not asked about constants."""
    numbers = score_predictions(task, predictions, protocol=protocol, length_edges=length_edges)
    if numbers["score"] is None or task.judge is not None:
        return numbers

    def measure(constant: Sequence[Prediction]) -> float:
        return score_predictions(task, constant, protocol=protocol, length_edges=length_edges)["score"]

    with explain_damage(f"{task.name}: the baselines cannot be measured", _REMEDY):
        # `floors` is the key that readers of the file know.
        return {**numbers, "floors": asdict(measure_baselines(predictions, measure))}


def _count(predictions: Sequence[Prediction]) -> dict[str, object]:
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
    settings: JsonObject,
    info: Mapping[str, str],
    protocol: str | None = None,
    length_edges: Sequence[int] | None = None,
    judge: JsonObject | None = None,
) -> TaskResult:
    """Score a task under all of its protocols and write `scores.json`, and files to upload if the task has some.

    `protocol` is the headline's (None: the task's first); `length_edges` are borders of context-length bins in tokens
    (None: the task's own); `judge` says who gave the verdicts. Raises ConfigError if the task lacks the protocol.
    """
    headline = protocol if protocol is not None else task.protocols[0]
    if headline not in task.protocols:
        raise ConfigError(f"{task.name} has the protocols {', '.join(task.protocols)}, got {headline!r}")
    content = {
        "task": task.name,
        "version": settings.get("task_version", task.version),
        "source": task.source,
        "protocol": headline,
        "settings": dict(settings),
        "info": dict(info),
        **({} if judge is None else {"judge": judge}),
        "results": {
            name: score_with_baselines(task, predictions, protocol=name, length_edges=length_edges)
            for name in task.protocols
        },
    }
    for upload in task.uploads:
        try:
            write_result(folder / upload.name, upload.render(predictions))
        except MissingDependencyError as error:
            logger.warning("%s: %s is not written: %s", task.name, upload.name, error)
    write_result(folder / SCORES_NAME, json.dumps(content, indent=2) + "\n")
    # Read again, so that a run reports exactly what a later report finds in the file.
    return read_result(folder / SCORES_NAME)
