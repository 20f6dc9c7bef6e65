"""Agreement of two raters about the same answers: the share of equal verdicts, and Cohen's kappa (Cohen 1960).

kappa = (agreement - chance) / (1 - chance)     chance: what two raters with the same habits agree on by luck
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from eval.metrics.estimate import wilson_interval
from internvl.errors import EvalError


@dataclass(frozen=True)
class Agreement:
    """How often two raters say the same, with 95 % intervals."""

    count: int  # answers that both rated
    agreement: float  # share of equal verdicts
    agreement_interval: tuple[float, float]
    kappa: float | None  # None where both always say the same one thing, so that nothing can be told from chance
    kappa_interval: tuple[float, float] | None


def measure_agreement(pairs: Sequence[tuple[Hashable, Hashable]]) -> Agreement:
    """Agreement over (verdict of one, verdict of the other). Raises EvalError without pairs.

    The interval of kappa takes chance agreement as known, as Cohen's own standard error does, and Wilson's interval of
    the agreement, which has a width at perfect agreement.
    """
    if not pairs:
        raise EvalError("cannot measure agreement without pairs")
    count = len(pairs)
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    agreement = sum(one == other for one, other in pairs) / count
    interval = wilson_interval(agreement, count)
    chance = sum(ones[value] * others[value] for value in ones) / count**2
    if chance == 1:
        return Agreement(count, agreement, interval, None, None)
    kappa, low, high = ((share - chance) / (1 - chance) for share in (agreement, *interval))
    return Agreement(count, agreement, interval, kappa, (low, high))
