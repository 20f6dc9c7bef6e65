"""Lengths in tokens as people write them: `8k` is 8,000 tokens, `1M` is 1,000,000, `16k-32k` is a range.

MM-NIAH's length bins also count in thousands, not in multiples of 1,024.
"""

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from random import Random

TOLERANCE = 0.01  # of the length that was asked for
LONGEST = 16_000_000
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_NUMBER = r"(\d+(?:\.\d+)?)([kKmM]?)"


@dataclass(frozen=True)
class LengthRange:
    """Tokens that a sample may have."""

    low: int
    high: int  # inclusive

    @property
    def label(self) -> str:
        """For file names: thousands, such as `16_32`, or `8`."""
        low, high = (f"{tokens / 1000:g}" for tokens in (self.low, self.high))
        return high if low == high else f"{low}_{high}"

    def draw(self, rng: Random) -> int:
        """A length of the range, uniform."""
        return rng.randint(self.low, self.high)


def parse_length(text: str) -> LengthRange:
    """`8k`, `131072`, `1M` or `16k-32k` -> LengthRange; argparse.ArgumentTypeError for anything else."""
    match = re.fullmatch(f"{_NUMBER}(?:-{_NUMBER})?", text)
    if match is None:
        raise ArgumentTypeError(f"got {text!r}, expected a length such as 8k, 1M or 16k-32k")
    low = round(float(match[1]) * _UNITS[match[2].lower()])
    high = low if match[3] is None else round(float(match[3]) * _UNITS[match[4].lower()])
    if not 1 <= low <= high <= LONGEST:
        raise ArgumentTypeError(f"got {text!r}, expected 1 <= shortest <= longest <= {LONGEST} tokens")
    return LengthRange(low, high)
