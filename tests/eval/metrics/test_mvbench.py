import pytest

from eval.metrics.mvbench import find_frame_range, score


@pytest.mark.parametrize(
    ("said", "official", "upstream"),
    [
        ("B", 1, 1), ("(B) walking", 1, 1), ("b.", 1, 1), ("A", 0, 0), ("Answer: (B)", 0, 1), ("The answer is B", 0, 0),
        ("", 0, 1), ("  ", 0, 1), ("(", 1, 1), ("B\n", 0, 0),
    ],
)  # fmt: skip
def test_the_first_word_decides(said, official, upstream):
    assert score("(B) walking the dog.", said, protocol="official") == official
    assert score("(B) walking the dog.", said, protocol="upstream") == upstream


def test_clips_become_frames():
    assert find_frame_range(None, fps=30, last=299) == (0, 299)
    assert find_frame_range((1.2, 11.9), fps=3, last=90, first=1) == (4, 36)
    assert find_frame_range((20, 30), fps=10, last=99) == (200, 99)
