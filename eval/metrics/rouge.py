"""ROUGE-L by the rules of two packages, each of which some benchmark's published scorer uses.

`score_rouge_l` is that of `rouge` 1.0.1 (MileBench). Written here because that package is not maintained, recurses once
per word (a long response crashes it) and fails on texts whose sentences are all empty. Its rule is not Lin's (2004):
sentences end at every period, and each word counts once, so `a` and `a a a a` are equal.

`score_rouge_lsum` is `rougeLsum` of Google's `rouge-score` 0.1.2 with its stemmer (MMLongBench's summaries): sentences
end at line breaks, words are stems of letters and digits, and every occurrence counts. Written here because the package
brings NLTK for one stemmer.
"""

import re
from collections import Counter
from collections.abc import Sequence

from eval.metrics.porter import stem

_EPSILON = 1e-8
_MIN_STEMMED = 4  # letters


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


def score_rouge_lsum(gold: str, said: str) -> float:
    """F measure of the union of longest common subsequences, in 0..1; 0 if either text has no word."""
    golds, saids = ([_split_stems(line) for line in text.split("\n")] for text in (gold, said))
    left_gold, left_said = (Counter(word for line in lines for word in line) for lines in (golds, saids))
    num_gold, num_said, num_common = left_gold.total(), left_said.total(), 0
    if not num_gold or not num_said:
        return 0.0
    for line in golds:
        places = {place for other in saids for _, place in find_common_places(other, line)}
        for word in (line[place] for place in sorted(places)):
            if left_gold[word] and left_said[word]:  # no word of either text counts twice
                num_common += 1
                left_gold[word] -= 1
                left_said[word] -= 1
    return 2 * num_common / (num_gold + num_said)


def _split_stems(line: str) -> list[str]:
    words = re.findall("[a-z0-9]+", line.lower())
    return [stem(word) if len(word) >= _MIN_STEMMED else word for word in words]


def find_common_words(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The words of `find_common_places`."""
    return [one[place] for place, _ in find_common_places(one, other)]


def find_common_places(one: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Places in `one` and `other` of a longest common subsequence.

    Of several, the one found by walking back from the ends, dropping words of `other` first.
    """
    lengths = [[0] * (len(other) + 1)]
    for word in one:
        above, row = lengths[-1], [0]
        for column, candidate in enumerate(other):
            row.append(above[column] + 1 if word == candidate else max(above[column + 1], row[-1]))
        lengths.append(row)
    places, i, j = [], len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            i, j = i - 1, j - 1
            places.append((i, j))
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return places[::-1]
