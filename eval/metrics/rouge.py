"""ROUGE-L as the package `rouge` 1.0.1 computes it, which MileBench's scorer uses.

Written here because that package is not maintained, recurses once per word (a long response crashes it) and fails on
texts whose sentences are all empty. Its rule is not Lin's (2004): sentences end at every period, and each word counts
once, so `a` and `a a a a` are equal.
"""

from collections.abc import Sequence

_EPSILON = 1e-8


def score_rouge_l(gold: str, said: str) -> float:
    """F measure of the union of longest common subsequences, over sets of words.

    Returns:
        0..1; equal texts give 0.999999995. 0 if either text has no sentence.
    """
    golds, saids = _split_sentences(gold), _split_sentences(said)
    if not golds or not saids:
        return 0.0
    common = {word for one in golds for other in saids for word in find_common_words(one, other)}
    recall = len(common) / len({word for sentence in golds for word in sentence})
    precision = len(common) / len({word for sentence in saids for word in sentence})
    return 2.0 * (precision * recall / (precision + recall + _EPSILON))


def _split_sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def find_common_words(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence.

    Of several, the one found by walking back from the ends, dropping words of `other` first.
    """
    lengths = [[0] * (len(other) + 1)]
    for word in one:
        above, row = lengths[-1], [0]
        for column, candidate in enumerate(other):
            row.append(above[column] + 1 if word == candidate else max(above[column + 1], row[-1]))
        lengths.append(row)
    words, i, j = [], len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            words.append(one[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words[::-1]
