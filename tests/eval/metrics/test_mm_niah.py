import pytest

from eval.metrics.mm_niah import (
    average_tasks,
    build_grid,
    find_depth_cell,
    is_correct,
    score_length_bins,
    summarise_grid,
)


def official(answer, response):
    return is_correct(answer, response, protocol="official")


def upstream(answer, response):
    return is_correct(answer, response, protocol="upstream")


@pytest.mark.parametrize(
    ("answer", "response", "expected"),
    [
        (2, "C", 1), (2, "c.", 1), (2, "2", 1), (2, "C. foo", 1), (0, "The answer is A", 1),
        (0, "the answer is **A**.", 1), (1, "None", 0), (0, "Answer: A", 0), (0, "A, because", 0), (0, "A, b. c", 0),
        (3, "٣", 1), (2, "²", 0), (5, "9" * 5000, 0), (0, "İ", 0), (1, "", 0), (1, "...", 0),
        (0, "left", 0), (1, "I think the camera is moving right now", 1), (True, "1", 1), (2, " 2", 0),
    ],
)  # fmt: skip
def test_option_answers(answer, response, expected):
    assert official(answer, response) == expected


@pytest.mark.parametrize(
    ("answer", "response", "expected"),
    [
        ([1, 2, 3], "[1,0,3,9]", 2 / 3), ([1, 2], '{"a":[1],"b":[2]}', 1), ([1], "1", 0), ([1], '["1"]', 0),
        ([1, 2], '{"a":[1],"b":2}', 0), ([1, 2], "{}", 0), ([1], "[NaN]", 0), ([1], "[Infinity]", 0),
        ([1], "[" * 100_000, 0), ([1], "[" * 5000 + "]" * 5000, 0), ([1], "[" + "1" * 5000 + "]", 0),
        ([0, 1], "[false, true]", 1), ([1], "null", 0), ([[1]], "[[1]]", 1), ([], "[1]", 0), ([1], "", 0),
        ([1, 2], "json[1,2]", 1), ([1], "\ufeff[1]", 0), ([1, 2], '{"a":[9],"a":[1,2]}', 1),
    ],
)  # fmt: skip
def test_counting_answers(answer, response, expected):
    assert official(answer, response) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "response", "expected"),
    [
        ("blue car", "It is the blue car.", 1), ("5", "five", 1), ("Hippo", "hippopotamus", 0), ("ninety", "90", 1),
        ("none", "0", 0), ("the", "!", 0), ("a", "", 0), ("dont know", "I don't know", 1), ("1,000", "1000", 1),
        ("blue", "BLUE\nindeed", 1), ("7", "17", 0), ("a.b", "ab", 1), ("c++", "c", 1),
    ],
)  # fmt: skip
def test_open_answers(answer, response, expected):
    assert official(answer, response) == expected


def test_upstream_accepts_directions_and_equal_sentence_starts():
    assert (upstream(0, "left"), official(0, "left")) == (1, 0)
    assert (upstream("3.5", "3.9"), official("3.5", "3.9")) == (1, 0)
    assert (upstream("$4.25", "$4.99"), official("$4.25", "$4.99")) == (1, 0)


def test_upstream_strips_the_response_but_not_the_gold():
    assert upstream("* ", "") == 0
    assert upstream("*.*", "") == 1


def test_answers_of_unknown_kind_are_refused():
    with pytest.raises(TypeError, match="NoneType"):
        official(None, "x")


def test_depth_cells_follow_binary_floating_point():
    assert [find_depth_cell(d) for d in (0, 0.2, 0.4, 0.6, 0.8, 1.0, [0.1, 0.5])] == [0, 1, 2, 2, 4, 4, 1]


@pytest.mark.parametrize("depth", [[], -0.1, 1.5, float("nan")])
def test_impossible_depths_are_refused(depth):
    with pytest.raises(ValueError, match="placed_depth"):
        find_depth_cell(depth)


def test_empty_cells_count_as_zero_only_in_the_official_score():
    grid = build_grid([(50, 0.1, 1.0), (150, 0.1, 1.0), (150, 0.9, 1.0), (150, 0.95, 0.0)], edges=(100, 200))
    assert score_length_bins(grid) == [pytest.approx((1 + 0.5) / 5), 0.0]
    summary = summarise_grid(grid)
    assert summary["weighted_acc"] == [pytest.approx(2 / 3), 0.0]
    assert summary["weighted_avg_acc"] == pytest.approx(3 / 4)
    assert summary["num_empty_cells"] == 3 + 5


def test_overall_needs_exactly_six_tasks():
    assert average_tasks([[task / 10, 0.0] for task in range(6)]) == [0.25, 0.0]
    assert average_tasks([[1.0]]) is None
