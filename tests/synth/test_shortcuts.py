from random import Random

import pytest

from internvl.synth.shortcuts import Probe, count_words, score_shortcuts


def make_probes(golds, *, chance=None, guess=None, expected=0.0):
    guesses = [{"reader": None if guess is None else guess(gold)} for gold in golds]
    return [Probe("g", gold, chance, says, {"reader": expected}) for gold, says in zip(golds, guesses, strict=True)]


@pytest.mark.parametrize(
    ("text", "words", "number"),
    [("ten tents, Ten", "ten", 2), ("4821 48213", "4821", 1), ("in New York now", "new york", 1), ("a.b", "a.b", 1)],
)
def test_words_are_counted_whole_in_any_case(text, words, number):
    assert count_words(text, words) == number


def test_guessing_among_equal_answers_is_at_chance():
    rng = Random(0)
    for _ in range(20):
        probes = make_probes([rng.choice("ABCD") for _ in range(200)], chance=0.25)
        assert score_shortcuts(probes)["g"]["reader"].at_chance


def test_one_answer_that_is_too_frequent_is_found():
    golds = ["A"] * 70 + list("BCD") * 10
    Random(0).shuffle(golds)
    row = score_shortcuts(make_probes(golds, chance=0.25))["g"]["reader"]
    assert row.score > 0.6
    assert not row.at_chance


def test_a_reader_that_knows_too_much_is_found():
    golds = [str(number) for number in range(100)]
    row = score_shortcuts(make_probes(golds, chance=0.01, guess=lambda gold: gold if int(gold) < 20 else "?"))["g"]
    assert row["reader"].score == 0.2
    assert not row["reader"].at_chance


def test_luck_that_is_expected_counts_as_chance():
    golds = [str(number) for number in range(100)]
    row = score_shortcuts(make_probes(golds, guess=lambda gold: gold if int(gold) < 20 else "?", expected=0.2))["g"]
    assert row["reader"].at_chance
    assert row["reader"].chance == 0.2
