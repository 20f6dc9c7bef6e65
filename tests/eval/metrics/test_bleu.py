import pytest

from eval.metrics.bleu import score_corpus, split_ptb, tokenise


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's John's, isn't it?", "it 's john 's , is n't it ?"),
        ('a man (in blue) says "SALE"', "a man -lrb- in blue -rrb- says `` sale ''"),
        ("Coca-Cola costs $5.99 at 10:30 p.m.", "coca-cola costs $ 5.99 at 10:30 p.m."),
        ("Mr. Smith of the U.S. has 1,000 men.", "mr. smith of the u.s. has 1,000 men ."),
        ("50% of 2.5kg — no. 5", "50 % of 2.5 kg -- no. 5"),
        ("cannot and/or 'inner' x...", "can not and/or ` inner ' x ..."),
    ],
)
def test_tokens_are_those_of_the_penn_treebank(text, tokens):
    """Expected tokens are the output of Stanford's PTBTokenizer 3.4.1 (`-lowerCase`)."""
    assert split_ptb(text) == tokens.split()


def test_punctuation_is_dropped_and_brackets_are_not():
    assert tokenise('"Stop", (he) said: no!') == ["stop", "-lrb-", "he", "-rrb-", "said", "no"]


def test_the_corpus_is_scored_as_a_whole():
    perfect = (["one two three four five"], "one two three four five")
    assert score_corpus([perfect]) == pytest.approx(1)
    assert score_corpus([perfect, (["a b c d e"], "")]) == pytest.approx(2.718281828459045**-1)  # half as long
    assert score_corpus([(["x y"], "x y")]) < 1e-3  # no three words in a row
    assert score_corpus([([""], "")]) < 1e-3


def test_the_closest_of_several_references_sets_the_length():
    said = "one two three four"
    assert score_corpus([([said, "one two three four five six"], said)]) == pytest.approx(1)
