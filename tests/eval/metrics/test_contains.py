import pytest

from eval.metrics.contains import score


@pytest.mark.parametrize(
    ("answer", "response", "options", "expected"),
    [
        ("blue", "It is Blue.", {}, 1),
        ("blue", "It is Blue.", {"ignore_case": False}, 0),
        ("art", "a party", {}, 0),
        ("art", "a party", {"whole_words": False}, 1),
        ("$5", "it costs $5.", {}, 1),
        ("C++", "C++, I think", {}, 1),
        ("5", "15", {}, 0),
        ("STRASSE", "in der straße", {}, 1),
        (["red", "blue"], "blue", {}, 1),
        (["red", "blue"], "blue", {"need": "all"}, 0),
        (["red", "blue"], "blue and red", {"need": "all"}, 1),
        (["red", ""], "red", {"need": "all"}, 0),
        ("", "anything", {}, 0),
        ([], "anything", {}, 0),
        (None, "anything", {"need": "all"}, 0),
        ("a", "", {}, 0),
        ("a", None, {}, 0),
        (" blue ", "blue", {}, 1),
        ("蓝色", "答案是 蓝色 。", {}, 1),
        (7, "there are 7", {}, 1),
    ],
)
def test_containment(answer, response, options, expected):
    assert score(answer, response, **options) == expected
