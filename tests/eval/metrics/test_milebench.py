import pytest

from eval.metrics.estimate import Estimate
from eval.metrics.milebench import (
    SETS,
    average_sets,
    find_level,
    find_rule,
    label_option,
    match_option,
    plan_canvases,
    process,
    score,
    score_choice_robust,
)


def test_labels_run_on_behind_z():
    assert [label_option(index) for index in (0, 25, 26, 51, 52, 77, 78)] == ["A", "Z", "AA", "AZ", "BA", "BZ", "B["]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A. Red, car!", "a red car"), ("3.5 m.", "3.5 m"), ('"Yes."', "yes"), ("it's a-b", "it's a b"), (12, "12")],
)
def test_texts_are_processed_as_published(text, expected):
    assert process(text) == expected


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("a", "A"), ("a red car", "A"), ("the answer is blue car", "B"), ("b red", "B"), ("", "C"), ("xyz", ""),
        ("ab", "AB"),
    ],
)  # fmt: skip
def test_options_are_matched_as_published(said, label):
    assert match_option(said, ["red car", "blue car", "green"]) == label


def test_labels_of_two_letters_are_cut_to_their_first():
    texts = [f"place {number:02}" for number in range(30)]
    assert match_option("aa place 26", texts) == "A"
    assert match_option("place 26", texts) == "AA"


@pytest.mark.parametrize("said", ["B", "(B)", "Answer: B", "blue car", "B. blue car", "I think it is the blue car"])
def test_the_robust_rule_reads_letters_first(said):
    assert score_choice_robust("blue car", said, choices=["red car", "blue car", "green"]) == 1


def test_the_robust_rule_knows_whole_texts_and_many_options():
    choices = [f"image {number}" for number in range(1, 31)]
    assert score_choice_robust("image 27", "image 27", choices=choices) == 1
    assert score("image 27", "image 27", rule="choice", choices=choices) == 0  # `image 2` comes first
    assert score_choice_robust("image 27", "AA", choices=choices) == 1
    assert score_choice_robust("image 27", "", choices=choices) == 0


def test_an_answer_outside_of_the_choices_is_refused():
    with pytest.raises(ValueError, match="not among the 2 choices"):
        score("x", "A", rule="choice", choices=["y", "z"])


def test_rules_follow_from_name_and_question_type():
    assert find_rule("TextNeedleInAHaystack", "open-ended") == "needle"
    assert find_rule("MMCoQA", "open-ended") == "contains"
    assert find_rule("IEdit", "open-ended") == "rouge"
    assert find_rule("TQA", "multi-choice") == "choice"
    with pytest.raises(ValueError, match="quiz"):
        find_rule("TQA", "quiz")


def test_levels_have_their_published_borders():
    assert [find_level(number) for number in (5, 6, 31, 32)] == ["Few", "Medium", "Medium", "Many"]


def test_averages_have_two_readings():
    assert len(SETS) == len(set(SETS)) == 29
    right = ("EgocentricNavigation", "MovingDirection", "GPR1200")
    averages = average_sets({name: Estimate(float(name in right), 0.0, 1) for name in SETS})
    assert averages["by_set"]["T"].score == pytest.approx(2 / 13)
    assert averages["by_task"]["T"].score == pytest.approx(1 / 4)
    assert averages["by_set"]["NI"].score == averages["by_task"]["NI"].score == pytest.approx(1 / 3)
    assert averages["by_task"]["average"].score == pytest.approx((1 / 4 + 0 + 1 / 3) / 3)


def test_standard_errors_of_averages_follow_the_weights_of_their_sets():
    averages = average_sets({name: Estimate(0.5, 0.1 if name == "nuscenes" else 0.0, 10) for name in SETS})
    assert averages["by_set"]["S"] == Estimate(0.5, pytest.approx(0.1 / 13), 130)
    assert averages["by_task"]["S"] == Estimate(0.5, pytest.approx(0.1 / 5), 130)  # the only set of S-5
    assert averages["by_task"]["average"] == Estimate(0.5, pytest.approx(0.1 / 5 / 3), 290)
    assert averages["by_task"]["T"].stderr == 0


def test_any_of_several_answers_is_right_by_both_rules():
    choices = ["cat", "dog", "cow"]
    for rule in (score_choice_robust, lambda *rest, choices: score(*rest, rule="choice", choices=choices)):
        assert [rule(["cat", "dog"], said, choices=choices) for said in ("A", "B. dog", "cow")] == [1, 1, 0]


def test_an_incomplete_group_has_no_average():
    averages = average_sets({name: Estimate(1.0, 0.0, 1) for name in SETS if name != "TQA"})["by_set"]
    assert {name: value and value.score for name, value in averages.items()} == {
        "T": 1.0, "S": None, "NI": 1.0, "average": None,
    }  # fmt: skip


def test_no_pictures_need_no_canvas():
    assert plan_canvases(0, max_images=1) == []
    assert plan_canvases(2, max_images=5) == [(1, (800, 800)), (1, (800, 800))]
