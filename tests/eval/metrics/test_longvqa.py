import pytest

from eval.metrics.longvqa import METRICS, find_metric, rectify, score, score_corpus, strict_anls
from eval.metrics.spelling import RuleLexicon

LEXICON = RuleLexicon()


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("chartqa", "three dogs", "3"), ("chartqa", "1,200 people", "1200"), ("chartqa", "12.5%", "12.5"),
        ("chartqa", "1:4", "0.25"), ("chartqa", "3/4", "0.75"), ("chartqa", "$5", "$5"), ("chartqa", "[12]", "12"),
        ("chartqa", "Norway", "no"), ("chartqa", "Yesterday", "yes"), ("svqa", "B. foo", "B"),
        ("tabfact", "yes it is", "Yes"), ("docvqa", "Nothing.", "Nothing"), ("gqa", "1:0", "1:0"),
        ("gqa", "a/b", "a/b"), ("gqa", "Two Dogs", "2"),
        ("kleistercharity", "Two Dogs.", "Two Dogs"), ("infovqa", "making boxes", "make box"),
        ("dvqa", "(a) [b]", "a) [b"),
    ],
)  # fmt: skip
def test_answers_are_rewritten_as_published(task, text, expected):
    assert rectify(text, task=task, lexicon=LEXICON) == expected


def test_only_upstream_rewrites():
    settings = {"task": "gqa", "lexicon": LEXICON}
    assert score("Norway", "North Korea", protocol="upstream", **settings) == 1
    assert score("Norway", "North Korea", protocol="official", **settings) == 0


def test_every_set_has_a_metric_and_unknown_ones_are_relaxed():
    assert len(METRICS) == 17
    assert find_metric("other") == "RACC"


def test_a_zero_is_compared_as_text():
    settings = {"task": "chartqa", "protocol": "official", "lexicon": LEXICON}
    assert score("0.0", "0", **settings) == score("0", "0.0", **settings) == 0
    assert score("100", "105", **settings) == 1


def test_half_a_match_is_none():
    assert strict_anls("abxy", "abcd") == 0
    assert strict_anls("abcx", "abcd") == 0.75
    assert strict_anls("", "") == 0


def test_corpus_numbers_of_pairs_and_texts():
    settings = {"protocol": "official", "lexicon": LEXICON}
    rows = [("d1", "x", "x"), ("d1", "y", "x"), ("d2", "Z.", "z")]
    assert score_corpus(rows, task="deepform", **settings) == pytest.approx(2 / 3)
    assert score_corpus([("1", "one two three four", "one two three four")], task="textcaps", **settings) > 0.999
    assert score_corpus(rows, task="svqa", **settings) == pytest.approx(1 / 3)
    assert score_corpus([], task="textcaps", **settings) == score_corpus([], task="svqa", **settings) == 0
