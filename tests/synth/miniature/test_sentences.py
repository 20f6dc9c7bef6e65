import re

from internvl.synth.miniature.sentences import read_paragraphs, read_sentences
from internvl.synth.miniature.vocabulary import CATEGORIES, list_values


def test_splits_share_no_sentence():
    train, test = read_sentences("train"), read_sentences("test")
    assert len(train) > 50
    assert len(test) > 10
    assert not set(train) & set(test)


def test_sentences_hold_no_needle_word():
    words = {
        word for split in ("train", "test") for text in read_sentences(split) for word in re.findall("[a-z]+", text)
    }
    assert len(words) > 200
    assert not words & {*CATEGORIES, *list_values()}


def test_sentences_are_short_plain_and_in_python_s_texts():
    text = "\n".join(read_paragraphs())
    for sentence in read_sentences("train"):
        assert len(sentence) <= 40
        assert sentence.isascii()
        assert sentence.endswith(".")
        assert sentence in text
