"""Answers: what the runs of a report said, question by question, with the score of each answer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.core.judge import read_judged
from eval.core.result import PREDICTIONS_NAME, TaskResult, read_settings
from eval.core.sample import Prediction
from eval.core.scoring import score_prediction
from eval.core.task import Task
from eval.score import read_checked_predictions
from eval.tasks.registry import find_saved_task
from internvl.errors import EvalError, InternVLError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer of one run."""

    prediction: Prediction
    score: float | None  # in 0..1; None where no answer is public or the rule cannot take one question alone


@dataclass(frozen=True)
class AnsweredTask:
    """One task and the runs that have answered it."""

    task: Task
    results: Mapping[str, TaskResult]  # by name of the run, the reference first
    runs: Mapping[str, Mapping[str, ScoredAnswer]]  # by name of the run, then by id; runs with saved predictions only

    def by_question(self) -> dict[str, dict[str, ScoredAnswer]]:
        """The answers by id, then by name of the run."""
        questions: dict[str, dict[str, ScoredAnswer]] = {}
        for run, answers in self.runs.items():
            for sample_id, answer in answers.items():
                questions.setdefault(sample_id, {})[run] = answer
        return questions


def group_by_task(results: Sequence[TaskResult], names: Sequence[str]) -> dict[str, dict[str, TaskResult]]:
    """Results by task, then by name of the run."""
    tasks: dict[str, dict[str, TaskResult]] = {}
    for result, name in zip(results, names, strict=True):
        tasks.setdefault(result.task, {})[name] = result
    return tasks


def read_answered(results: Sequence[TaskResult], names: Sequence[str]) -> dict[str, AnsweredTask]:
    """All tasks whose answers are there and whole; the others are logged."""
    tasks = {}
    for name, runs in group_by_task(results, names).items():
        try:
            tasks[name] = read_task(runs)
        except InternVLError as error:
            logger.warning("%s: no questions are shown: %s", name, error)
    return tasks


def read_task(results: Mapping[str, TaskResult]) -> AnsweredTask:
    """The answers of the runs of one task that have predictions, all scored by the first result's rule.

    Raises InternVLError if predictions are damaged or do not belong to their settings.
    """
    first = next(iter(results.values()))
    task = find_saved_task(first.settings, first.info)
    runs = {
        name: {
            prediction.id: ScoredAnswer(prediction, score_answer(task, prediction, first.protocol))
            for prediction in read_judged(
                task.judge, read_checked_predictions(result.folder, read_settings(result.folder)), result.folder
            )
        }
        for name, result in results.items()
        if (result.folder / PREDICTIONS_NAME).is_file()
    }
    return AnsweredTask(task, results, runs)


def score_answer(task: Task, prediction: Prediction, protocol: str) -> float | None:
    """The score in 0..1; None where no answer is public or the rule cannot take the response."""
    if prediction.answer is None and task.judge is None:
        return None
    try:
        return score_prediction(task, prediction, protocol=protocol)
    except EvalError:
        return None
