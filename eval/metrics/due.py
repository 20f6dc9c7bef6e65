"""F1 of extracted fields: the DUE benchmark's rule for DeepForm and Kleister Charity, and V2PE's simplified copy.

A value matches a reference of the same key if they share a spelling. A value is used up by its match: precision is the
share of predictions that find an unused reference, recall the share of references that find an unused prediction.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Annotation:
    """One value of a field."""

    key: Hashable  # document and field
    forms: frozenset[str]  # spellings of the value


def compute_f1(predictions: Sequence[Annotation], references: Sequence[Annotation]) -> dict[str, float]:
    """`precision`, `recall` and `F1` over a corpus; 0 where there is nothing to divide by."""
    precision, recall = _share_matched(predictions, references), _share_matched(references, predictions)
    total = precision + recall
    return {"precision": precision, "recall": recall, "F1": 2 * precision * recall / total if total else 0.0}


def _share_matched(items: Sequence[Annotation], others: Iterable[Annotation]) -> float:
    """Share of items that match one of the others which no earlier item used up."""
    left: dict[Hashable, list[Annotation]] = {}
    for other in others:
        left.setdefault(other.key, []).append(other)
    num_matched = 0
    for item in items:
        candidates = left.get(item.key, [])
        match = next((other for other in candidates if item.forms & other.forms), None)
        if match is not None:
            candidates.remove(match)
            num_matched += 1
    return num_matched / len(items) if items else 0.0
