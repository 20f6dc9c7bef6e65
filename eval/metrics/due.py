"""F1 of extracted fields: the DUE benchmark's DeepForm and Kleister Charity, and V2PE's simplified copy of it.

A field value matches a reference of the same key if they share a form of writing. Values are consumed one by one:
precision counts the predictions that still find a reference, recall the references that still find a prediction.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.metrics.text import read_golds


@dataclass(frozen=True)
class Annotation:
    """One value of a field.

    Attributes:
        key: Document and field.
        forms: Ways to write the value.
    """

    key: Hashable
    forms: frozenset[str]


def score_documents(documents: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, float]:
    """Corpus F1 as the DUE evaluator computes it.

    Args:
        documents: `(prediction, reference)` per document: values by key, and by key a list of lists of forms.

    Returns:
        `precision`, `recall` and `F1`, in 0..1, over the values of all documents.
    """
    predictions: list[Annotation] = []
    references: list[Annotation] = []
    for number, (prediction, reference) in enumerate(documents):
        predictions += (
            Annotation((number, key), frozenset({value})) for key in prediction for value in read_golds(prediction[key])
        )
        references += (
            Annotation((number, key), frozenset(read_golds(forms))) for key in reference for forms in reference[key]
        )
    return compute_f1(predictions, references)


def compute_f1(predictions: Sequence[Annotation], references: Sequence[Annotation]) -> dict[str, float]:
    """`precision`, `recall` and `F1` over a corpus; 0 where there is nothing to divide by."""
    precision, recall = _share_matched(predictions, references), _share_matched(references, predictions)
    total = precision + recall
    return {"precision": precision, "recall": recall, "F1": 2 * precision * recall / total if total else 0.0}


def _share_matched(items: Sequence[Annotation], others: Iterable[Annotation]) -> float:
    """Share of items that find one of the others that no item before them took."""
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
