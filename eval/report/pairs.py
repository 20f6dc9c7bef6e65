"""Pairs: every run against a reference, question by question, per task and context length and over all tasks.

A context length is that of the question (`metadata["context_length"]`), in the bins of the reference's own scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.core.result import LengthBin
from eval.metrics.paired import PairedDifference, compare_pairs
from eval.report.answers import AnsweredTask, ScoredAnswer
from eval.report.rows import ALL_LENGTHS, label_length

ALL_TASKS = "mean of all tasks"
Changes = dict[str, tuple[float, float]]  # (score of the reference, score of the run) by id of the question


@dataclass(frozen=True)
class Pair:
    """A run against the reference."""

    task: str  # `group/task`, or `mean of all tasks`
    length: str  # label of the context length, or `all`
    reference: str  # names of the two runs
    run: str
    difference: PairedDifference
    better: tuple[str, ...] = ()  # ids of the questions on which the run scores higher; listed for whole tasks
    worse: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The pair as page.json has it."""
        found = self.difference
        return {
            "task": self.task,
            "length": self.length,
            "reference": self.reference,
            "run": self.run,
            "reference_score": found.reference.score,
            "reference_interval": found.reference.interval,
            "score": found.score.score,
            "interval": found.score.interval,
            "difference": found.gain,
            "difference_interval": (found.low, found.high),
            "num_better": found.num_better,
            "num_worse": found.num_worse,
            "p_value": found.p_value,
            "verdict": found.verdict,
            "count": found.count,
            "better": self.better,
            "worse": self.worse,
        }


def compare_runs(tasks: Mapping[str, AnsweredTask], reference: str) -> list[Pair]:
    """Every other run against `reference`, on the questions that both answered and that have a score."""
    runs = dict.fromkeys(run for task in tasks.values() for run in task.runs if run != reference)
    return [pair for run in runs for pair in _compare(tasks, reference, run)]


def _compare(tasks: Mapping[str, AnsweredTask], reference: str, run: str) -> list[Pair]:
    shared = {
        name: scores
        for name, task in tasks.items()
        if reference in task.runs and (scores := _pair_scores(task.runs[reference], task.runs.get(run, {})))
    }
    pairs: list[Pair] = []
    at_length: dict[str, list[list[tuple[float, float]]]] = {}
    for name, scores in shared.items():
        pairs.append(
            Pair(
                *(name, ALL_LENGTHS, reference, run),
                compare_pairs([list(scores.values())]),
                better=tuple(sample_id for sample_id, (before, after) in scores.items() if after > before),
                worse=tuple(sample_id for sample_id, (before, after) in scores.items() if after < before),
            )
        )
        for label, part in _split_by_length(tasks[name], reference, scores).items():
            at_length.setdefault(label, []).append(part)
            pairs.append(Pair(name, label, reference, run, compare_pairs([part])))
    if len(shared) > 1:
        whole = [list(scores.values()) for scores in shared.values()]
        means = {
            ALL_LENGTHS: whole,
            **{label: parts for label, parts in at_length.items() if len(parts) == len(shared)},
        }
        pairs += [Pair(ALL_TASKS, label, reference, run, compare_pairs(parts)) for label, parts in means.items()]
    return pairs


def _pair_scores(reference: Mapping[str, ScoredAnswer], run: Mapping[str, ScoredAnswer]) -> Changes:
    return {
        sample_id: (answer.score, other.score)
        for sample_id, answer in reference.items()
        if (other := run.get(sample_id)) is not None and answer.score is not None and other.score is not None
    }


def _split_by_length(task: AnsweredTask, reference: str, scores: Changes) -> dict[str, list[tuple[float, float]]]:
    """The scores by length, from short to long; nothing where all contexts are about the same length."""
    bins = task.results[reference].headline.by_length
    if len(bins) < 2:
        return {}
    parts: dict[str, list[tuple[float, float]]] = {label_length(entry.low, entry.high): [] for entry in bins}
    for sample_id, pair in scores.items():
        label = find_length(task.runs[reference][sample_id].prediction.metadata.get("context_length"), bins)
        if label is not None:
            parts[label].append(pair)
    return {label: pairs for label, pairs in parts.items() if pairs}


def find_length(length: float | None, bins: Sequence[LengthBin]) -> str | None:
    """Label of the bin that a context length falls into; None where it is not known or there is no such bin."""
    if not isinstance(length, int | float):
        return None
    for entry in bins:
        if (entry.low or 0) <= length and (entry.high is None or length < entry.high):
            return label_length(entry.low, entry.high)
    return None
