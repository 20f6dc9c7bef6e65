"""Paired comparison: two runs that answered the same questions, compared question by question.

    (score of the reference, score of the other run) per question  -->  mean difference, interval, exact test

Questions differ in difficulty far more than runs do, so this finds differences that two separate intervals hide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from eval.metrics.estimate import Estimate, average_estimates, estimate_mean
from internvl.errors import EvalError

NUM_DRAWS = 4000
SIGNIFICANT = 0.05
_DIGITS = 3  # of a difference in the bootstrap: bounds the number of distinct values


@dataclass(frozen=True)
class PairedDifference:
    """What a run gains over a reference on the same questions."""

    reference: Estimate  # mean score of the reference
    score: Estimate  # mean score of the run
    low: float  # 95 % interval of the difference of the two
    high: float
    num_better: int  # questions on which the run scores higher
    num_worse: int
    p_value: float  # of the sign test on these two: McNemar's exact test where answers are right or wrong
    count: int  # questions

    @property
    def gain(self) -> float:
        """How much more the run scores."""
        return self.score.score - self.reference.score

    @property
    def verdict(self) -> str:
        """`better` or `worse` where interval and test agree that chance is no explanation."""
        if self.p_value >= SIGNIFICANT or self.low <= 0 <= self.high:
            return "no clear difference"
        return "better" if self.gain > 0 else "worse"


def compare_pairs(tasks: Sequence[Sequence[tuple[float, float]]], *, seed: int = 0) -> PairedDifference:
    """Compare two runs on one or several tasks, which count the same in both means.

    The interval is a percentile bootstrap over the questions of each task. Two questions are added to each, one that
    the run gains and one that it loses (as Bonett and Price 2012 do), so that it has a width where no answer changed.

    Args:
        tasks: For each task, (score of the reference, score of the run) in 0..1 of every question.
        seed: Of the bootstrap.

    Raises:
        EvalError: A task has no questions, or there is no task.
    """
    if not tasks or not all(tasks):
        raise EvalError("cannot compare runs without questions that both of them answered")
    rng = np.random.default_rng(seed)
    scores = [np.array(pairs, dtype=float) for pairs in tasks]
    differences = [np.round(pairs[:, 1] - pairs[:, 0], _DIGITS) for pairs in scores]
    low, high = np.quantile(np.mean([_draw_means(values, rng) for values in differences], axis=0), (0.025, 0.975))
    reference, score = (
        average_estimates([estimate_mean(pairs[:, side].tolist()) for pairs in scores]) for side in (0, 1)
    )
    num_better = sum(int((values > 0).sum()) for values in differences)
    num_worse = sum(int((values < 0).sum()) for values in differences)
    num_changed = num_better + num_worse
    return PairedDifference(
        reference=reference,
        score=score,
        low=float(low),
        high=float(high),
        num_better=num_better,
        num_worse=num_worse,
        p_value=float(binomtest(num_better, num_changed).pvalue) if num_changed else 1.0,
        count=sum(map(len, tasks)),
    )


def _draw_means(differences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of samples drawn with replacement; how often each value is drawn is multinomial."""
    values, counts = np.unique(np.append(differences, (1.0, -1.0)), return_counts=True)
    num = counts.sum()
    means: np.ndarray = rng.multinomial(num, counts / num, size=NUM_DRAWS) @ values / num
    return means
