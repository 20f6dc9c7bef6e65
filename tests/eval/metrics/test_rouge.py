import pytest

from eval.metrics.rouge import find_common_words, score_rouge_l


@pytest.mark.parametrize(
    ("gold", "said", "expected"),
    [
        ("the dog runs", "the dog runs", 1), ("a", "a a a a", 1), ("a b c d", "b d", 2 / 3), ("a b", "b a", 0.5),
        ("a b. c d", "c d. a b", 1), ("a", "b", 0), ("", "a", 0), ("a", "...", 0),
    ],
)  # fmt: skip
def test_words_count_once_and_sentences_end_at_periods(gold, said, expected):
    assert score_rouge_l(gold, said) == pytest.approx(expected, abs=1e-7)


def test_long_texts_do_not_recurse():
    words = [str(number) for number in range(2000)]
    assert find_common_words(words, words) == words


def test_of_two_common_subsequences_the_published_one_is_found():
    assert find_common_words(["a", "b"], ["b", "a"]) == ["b"]
