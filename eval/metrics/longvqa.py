"""Long-VQA, V2PE's own benchmark: 17 sets of document and picture questions in long contexts (arXiv 2412.09616).

`upstream` first rewrites both the answer and the response (`rectify`), as for the published numbers. The rewriting
loses much: `Norway` and `North Korea` both become `no`. `official` applies the same metrics to the texts as they are.
Neither number is comparable with those of the original single-picture sets, whose metrics differ.

    RACC   relaxed accuracy, as in ChartQA             EACC  equal text            ANLS  strict: above 0.5, not from 0.5
    F1     of (id, value) pairs over the corpus        WTQ   denotation accuracy   TEXTVQA  M4C soft accuracy
    BLEU4  over the corpus
"""  # fmt: skip

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

from eval.metrics import bleu, due, wtq
from eval.metrics.lexicon import Lexicon
from eval.metrics.protocol import Protocol
from eval.metrics.relaxed import is_close
from eval.metrics.text import NUMBERS_TO_NINETY, normalise_m4c, read_golds, read_text
from eval.metrics.vqa import share_of_people

Metric = Literal["RACC", "EACC", "ANLS", "TEXTVQA", "F1", "WTQ", "BLEU4"]
Row = tuple[Hashable, object, str | None]

METRICS: dict[str, Metric] = {
    **dict.fromkeys(("chartqa", "clevr", "dvqa", "gqa", "ocrvqa"), "RACC"),
    **dict.fromkeys(("svqa", "tabfact"), "EACC"),
    **dict.fromkeys(("deepform", "kleistercharity"), "F1"),
    **dict.fromkeys(("docvqa", "infovqa"), "ANLS"),
    **dict.fromkeys(("okvqa", "textvqa", "vizwiz"), "TEXTVQA"),
    **dict.fromkeys(("textcaps", "visualmrc"), "BLEU4"),
    "wikitablequestions": "WTQ",
}
MAX_ANLS_DISTANCE = 0.5
_REWRITTEN = frozenset(METRICS) - {"svqa", "tabfact", "docvqa", "textvqa", "textcaps", "kleistercharity"}
_NUMBER_WORDS = {word: digits for word, digits in NUMBERS_TO_NINETY.items() if int(digits) <= 20}
_WITH_UNIT = re.compile(r"([0-9]+\.?[0-9]*)\s+[A-Za-z\s]+")


def find_metric(task: str) -> Metric:
    """Metric of a set; RACC for sets that the published script does not know."""
    return METRICS.get(task, "RACC")


def score(answer: object, response: str | None, *, task: str, protocol: Protocol, lexicon: Lexicon) -> float:
    """Score of one response in 0..1; for F1 and BLEU4, `score_corpus` gives the number of a whole set.

    Args:
        answer: One accepted text or several.
        response: What the model said.
        task: Name of the set.
        protocol: `upstream` rewrites both texts first.
        lexicon: Used under `upstream` only.
    """
    golds, said = _prepare(answer, response, task=task, protocol=protocol, lexicon=lexicon)
    metric = find_metric(task)
    if metric == "WTQ":
        return wtq.score(golds, said)
    if metric == "F1":
        return float(said in golds)
    if metric == "TEXTVQA":
        return share_of_people([normalise_m4c(gold) for gold in golds], normalise_m4c(said))
    if metric == "BLEU4":
        return bleu.score_corpus([(golds, said)]) if golds else 0.0
    compare = {"RACC": relaxed_accuracy, "EACC": exact_accuracy, "ANLS": _anls_of_lower_case}[metric]
    return max((compare(gold, said) for gold in golds), default=0.0)


def score_corpus(rows: Sequence[Row], *, task: str, protocol: Protocol, lexicon: Lexicon) -> float:
    """The published number of a set in 0..1, from `(id, answer, response)` per sample.

    For F1, samples with the same id are one document with several values. The other arguments are those of `score`.
    """
    metric = find_metric(task)
    if metric not in ("F1", "BLEU4"):
        scores = [score(gold, said, task=task, protocol=protocol, lexicon=lexicon) for _, gold, said in rows]
        return sum(scores) / len(scores) if scores else 0.0
    prepared = [_prepare(gold, said, task=task, protocol=protocol, lexicon=lexicon) for _, gold, said in rows]
    if metric == "BLEU4":
        return bleu.score_corpus(prepared) if prepared else 0.0
    keys = [key for key, _, _ in rows]
    return _compute_f1(zip(keys, prepared, strict=True))


def _compute_f1(rows: Iterable[tuple[Hashable, tuple[list[str], str]]]) -> float:
    rows = list(rows)
    references = [due.Annotation(key, frozenset(golds)) for key, (golds, _) in rows]
    predictions = [due.Annotation(key, frozenset({said})) for key, (_, said) in rows]
    return due.compute_f1(predictions, references)["F1"]


def _prepare(
    answer: object, response: str | None, *, task: str, protocol: Protocol, lexicon: Lexicon
) -> tuple[list[str], str]:
    texts = [*read_golds(answer), read_text(response)]
    if protocol == "upstream":
        texts = [rectify(text, task=task, lexicon=lexicon) for text in texts]
    clean = _clean_value if find_metric(task) in ("F1", "WTQ") else _clean_line
    *golds, said = map(clean, texts)
    return golds, said


def _clean_line(text: str) -> str:
    return text.replace("\n", "").strip().removesuffix(".")


def _clean_value(text: str) -> str:
    return text.lower().strip().rstrip(".")


def relaxed_accuracy(gold: str, said: str) -> float:
    """ChartQA's rule."""
    # The published copy also requires that neither number is 0, which changes nothing: 0 is within 5 % of no other one.
    return float(is_close(gold, said))


def exact_accuracy(gold: str, said: str) -> float:
    """1 for equal text."""
    return float(gold == said)


def strict_anls(gold: str, said: str) -> float:
    """`1 - distance / longer length` if the distance is below half of that length, else 0. Two empty texts give 0."""
    length = max(len(gold), len(said))
    distance = Levenshtein.distance(gold, said) / length if length else 1.0
    return 1.0 - distance if distance < MAX_ANLS_DISTANCE else 0.0


def _anls_of_lower_case(gold: str, said: str) -> float:
    return strict_anls(gold.lower(), said.lower())


# The rewriting ------------------------------------------------------------------------------------------------------


def rectify(text: str, *, task: str, lexicon: Lexicon) -> str:
    """V2PE's rewriting of answers and responses before scoring.

    In all sets, spaces and then periods are stripped from the ends. svqa keeps only a first letter A to D, tabfact only
    a first `Yes` or `No`. docvqa, textvqa, textcaps and kleistercharity change nothing more. The others:

    1. shorten yes and no as in tabfact, and write number words up to twenty as digits
    2. drop commas inside numbers, units after numbers, one percent sign, and outer brackets
    3. drop `ing` where a word remains, and put every word into the singular, in lower case
    4. write `a/b` and `a:b` as a decimal number
    """
    text = text.strip().strip(".")
    if task == "svqa":
        text = text[:1] if text[:1] in ("A", "B", "C", "D") else text
    elif task == "tabfact":
        text = _shorten_yes_no(text)
    elif task in _REWRITTEN:
        text = _rewrite(text, lexicon)
    return text.strip()


def _rewrite(text: str, lexicon: Lexicon) -> str:
    text = _shorten_yes_no(text)
    text = " ".join(_NUMBER_WORDS.get(word.lower(), word) for word in text.split(" "))
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    with_unit = _WITH_UNIT.fullmatch(text)
    text = (with_unit[1] if with_unit else text).removesuffix("%")
    for bracket in "[]()":
        text = text.strip(bracket)
    text = text.strip("{").strip("}")
    words = (_cut_ing(word, lexicon) for word in text.split(" "))
    return _divide(" ".join(lexicon.find_singular(word.lower()) for word in words))


def _shorten_yes_no(text: str) -> str:
    if text.startswith(("Yes", "yes")):
        return "Yes"
    return "No" if text.startswith(("No", "no")) else text


def _cut_ing(word: str, lexicon: Lexicon) -> str:
    stem = word[:-3].lower()
    if not word.endswith("ing") or len(stem) < 2:
        return word
    return lexicon.find_root(stem) or word


def _divide(text: str) -> str:
    for sign in ":/":
        parts = text.split(sign)
        if len(parts) == 2:
            try:
                return str(float(parts[0]) / float(parts[1]))
            except (ValueError, ZeroDivisionError):
                continue
    return text
