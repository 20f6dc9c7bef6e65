import pytest

from eval.metrics.videomme import Answered, find_letter, score, summarise


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("(C)", "C"), ("The answer is B. Dogs", "B"), ("Best option: C", "B"), ("Dogs", "D"), ("a", ""), ("", ""),
        ("The correct option is D", "D"),
    ],
)  # fmt: skip
def test_the_first_capital_letter_is_the_answer(said, letter):
    assert find_letter(said) == letter


def test_no_letter_is_wrong():
    assert score("A", "none of these") == score("", "") == 0
    assert score("B", "Answer: B") == 1


def test_the_official_number_leaves_out_responses_without_a_letter():
    def answered(duration, *, is_right, has_letter=True):
        return Answered(duration, "Knowledge", "Law", "OCR Problems", is_right, has_letter)

    rows = [answered("short", is_right=True), answered("long", is_right=False, has_letter=False)]
    summary = summarise(rows)
    assert list(summary) == ["short", "long", "all"]
    assert summary["all"]["overall"] == {
        "accuracy": 0.5, "stderr": pytest.approx((0.25 / 2) ** 0.5), "official": 1.0, "official_stderr": 0.0,
        "count": 2, "num_without_letter": 1,
    }  # fmt: skip
    assert summary["long"]["domain"]["Knowledge"]["official"] == 0
    assert summarise([])["all"]["overall"]["count"] == 0
