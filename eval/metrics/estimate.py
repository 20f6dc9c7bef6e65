"""Means with standard errors, of single scores and of other means.

    scores of questions  --estimate_mean-->  a task  --average_estimates, pool_estimates-->  a suite

Questions and tasks are taken as independent, so the variance of a sum is the sum of variances.
"""

import math
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from internvl.errors import EvalError

Name = TypeVar("Name", bound=Hashable)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Estimate:
    """A mean of scores."""

    score: float
    # Standard error; for a plain mean sqrt(variance / count), which is the binomial one where scores are 0 or 1.
    stderr: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval (Wilson), of as many right or wrong answers as would have this standard error."""
        variance = self.score * (1 - self.score)
        return wilson_interval(self.score, variance / self.stderr**2 if variance and self.stderr else self.count)


def read_estimate(numbers: Mapping[str, Any]) -> Estimate:
    """The estimate in an object with `score`, `stderr`, `count` and perhaps more."""
    return Estimate(numbers["score"], numbers["stderr"], numbers["count"])


def estimate_mean(scores: Sequence[float]) -> Estimate:
    """Mean and standard error. Raises EvalError without scores."""
    if not scores:
        raise EvalError("cannot average zero scores")
    count = len(scores)
    mean = math.fsum(scores) / count
    variance = math.fsum((score - mean) ** 2 for score in scores) / count
    return Estimate(mean, math.sqrt(variance / count), count)


def estimate_groups(rows: Iterable[tuple[Name, float]]) -> dict[Name, dict[str, float]]:
    """`score`, `stderr` and `count` of every group from `(group, score)`, in order of appearance."""
    groups: dict[Name, list[float]] = {}
    for name, score in rows:
        groups.setdefault(name, []).append(score)
    return {name: vars(estimate_mean(scores)) for name, scores in groups.items()}


def estimate_share(part: float, whole: int) -> Estimate:
    """Share of `part` right scores among `whole`; 0 of none."""
    share = part / whole if whole else 0.0
    return Estimate(share, math.sqrt(share * (1 - share) / whole) if whole else 0.0, whole)


def estimate_clusters(clusters: Iterable[Sequence[float]]) -> Estimate:
    """Mean of all scores, where only scores of different clusters are independent. Raises EvalError without scores."""
    sizes = [(math.fsum(scores), len(scores)) for scores in clusters]
    count = sum(size for _, size in sizes)
    if not count:
        raise EvalError("cannot average zero scores")
    mean = math.fsum(total for total, _ in sizes) / count
    # Standard error of a ratio: sqrt(sum((s - mean * n)^2)) / sum(n) over clusters of n scores with the sum s.
    return Estimate(mean, math.sqrt(math.fsum((total - mean * size) ** 2 for total, size in sizes)) / count, count)


def average_estimates(parts: Sequence[Estimate]) -> Estimate:
    """Mean of independent means with equal weights. Raises EvalError without parts."""
    if not parts:
        raise EvalError("cannot average zero scores")
    return Estimate(
        math.fsum(part.score for part in parts) / len(parts),
        math.hypot(*(part.stderr for part in parts)) / len(parts),
        sum(part.count for part in parts),
    )


def pool_estimates(parts: Sequence[Estimate]) -> Estimate:
    """Mean of independent means in which every question counts the same. Raises EvalError without questions."""
    count = sum(part.count for part in parts)
    if not count:
        raise EvalError("cannot average zero scores")
    score = math.fsum(part.score * part.count for part in parts) / count
    return Estimate(score, math.hypot(*(part.stderr * part.count for part in parts)) / count, count)


def bootstrap_stderr(
    items: Sequence[Item], statistic: Callable[[Sequence[Item]], float], *, num_draws: int = 200, seed: int = 0
) -> float:
    """Standard error of a statistic that is not a mean: its spread over samples drawn with replacement."""
    generator = random.Random(seed)
    values = [statistic(generator.choices(items, k=len(items))) for _ in range(num_draws)]
    mean = math.fsum(values) / num_draws
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num_draws - 1))


def wilson_interval(score: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927), which has a width at 0 and 1, where the standard error is 0."""
    spread = z * math.sqrt(score * (1 - score) / count + z**2 / (4 * count**2))
    centre, scale = score + z**2 / (2 * count), 1 + z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
