import pytest

from eval.metrics.choice import cut_letter, find_letter, label_options, score, score_ai2d, score_scienceqa

CITIES = label_options(["Rome", "Paris", "Lyon", "Nice"])


def test_options_are_lettered_and_may_not_go_beyond_z():
    assert label_options(["x", 2]) == {"A": "x", "B": "2"}
    assert list(label_options(["x"] * 26))[-1] == "Z"
    with pytest.raises(ValueError, match="27 options"):
        label_options(["x"] * 27)


@pytest.mark.parametrize(
    ("said", "robust", "crude"),
    [
        ("B", "B", "B"), ("(B)", "B", "(B)"), ("Answer: C", "C", "A"), ("It is **D**", "D", "It is **D**"),
        ("paris", "B", "paris"), ("It is Lyon.", "C", "C"), ("A or B", None, "A"), ("b", None, "b"), ("", None, ""),
        ("Rome and Paris", None, "A"), ("Z", "Z", "Z"), ("Cannot determine the answer", "Z", "C"),
        ("Failed to obtain answer via API: B", None, "Failed to obtain answer via API: B"),
        ("B one two three", "B", "B"), ("B one two three four five", None, "B"),
    ],
)  # fmt: skip
def test_both_rules_find_their_letters(said, robust, crude):
    assert find_letter(said, CITIES) == robust
    assert cut_letter(said, CITIES) == crude


def test_a_letter_far_from_the_end_is_found_if_the_text_says_that_it_is_the_answer():
    said = "The correct answer is b and I can explain at length why that must be so"
    assert find_letter(said, CITIES) == "B"
    assert find_letter(said.replace(" b ", " e "), CITIES) is None


def test_a_single_character_is_no_text_of_an_option():
    assert cut_letter("2", {"A": "2", "B": "4"}) == "2"
    assert cut_letter("12", {"A": "2", "B": "4"}) == "A"


def test_protocols_choose_the_rule():
    assert score("C", "Answer: C", options=CITIES, protocol="official") == 1
    assert score("C", "Answer: C", options=CITIES, protocol="upstream") == 0
    assert score("", "", options=CITIES, protocol="upstream") == 0


def test_options_may_be_numbers():
    assert score("B", "24", options={"A": 3, "B": 24}, protocol="official") == 1


def test_scienceqa_reads_its_own_sentence_first():
    said = "The answer is B. Rome is older than Lyon, which is C, so A B C."
    assert score_scienceqa("B", said, options=CITIES, protocol="official") == 1
    assert score_scienceqa("B", f"{said} The answer is C.", options=CITIES, protocol="official") == 1  # by `answer is`
    assert score_scienceqa("A", "The answer is B.", options=CITIES, protocol="upstream") == 0


def test_scienceqas_sentence_ends_with_any_character_and_names_an_option():
    said = "The answer is B, for A and C and D are others, as one can see on the map"
    assert score_scienceqa("B", said, options=CITIES, protocol="official") == 1
    twice = "I said: The answer is A; now, The answer is C."
    assert score_scienceqa("C", twice, options=CITIES, protocol="official") == 0  # two sentences: by `answer is`
    assert score_scienceqa("D", "The answer is E. Nice", options=CITIES, protocol="official") == 1  # by its text


def test_ai2d_upstream_wants_the_bare_letter():
    assert score_ai2d("B", "B. Paris", options=CITIES, protocol="upstream") == 0
    assert score_ai2d("B", "b", options=CITIES, protocol="upstream") == 1
    assert score_ai2d("B", "B. Paris", options=CITIES, protocol="official") == 1
