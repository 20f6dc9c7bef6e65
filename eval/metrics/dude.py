"""DUDE: ANLS of one answer, or of the best matches between several (arXiv 2305.08455).

The rule is that of the competition's script as mPLUG-DocOwl's evaluation has it (`dude_eval.py`), which also says how a
response in one text becomes answers:

    response --without line breaks--> `... not answerable ...`                    --> an empty text
                                      a list is asked for: split at every `, `    --> answers
                                      else                                        --> one answer

An empty text is also the gold answer of a question that the document does not answer.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy.optimize import linear_sum_assignment

from eval.metrics import anls
from eval.metrics.text import read_text

NOT_ANSWERABLE = "not answerable"


class Answer(TypedDict):
    """Gold answers: all of a list, or those of which any will do; none if the document has no answer."""

    texts: Sequence[str]
    is_list: bool


def score(answer: Answer, response: str | None) -> float:
    """Similarity in 0..1: of the closest gold answer, or of a list's best matches over the longer list's length."""
    said = read_text(response).strip().replace("\n", "")
    if NOT_ANSWERABLE in said.lower():
        said = ""
    golds = answer["texts"] or [""]
    return _match(golds, said.split(", ")) if answer["is_list"] else anls.score(golds, said)


def _match(golds: Sequence[str], saids: Sequence[str]) -> float:
    similarities = np.array([[anls.score(gold, said) for said in saids] for gold in golds])
    best = linear_sum_assignment(similarities, maximize=True)
    return float(similarities[best].sum()) / max(len(set(golds)), len(saids))
