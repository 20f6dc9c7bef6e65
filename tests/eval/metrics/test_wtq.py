import pytest

from eval.metrics.wtq import normalise, score


@pytest.mark.parametrize(
    ("gold", "said", "expected"),
    [
        ("1234", "1,234", 0), (["5"], ["5", "5.0"], 1), (["a", "b"], ["b", "A"], 1), (["a", "b"], ["a"], 0),
        ("2001-5-6", "2001-05-06", 1), ("2001", "2001-xx-xx", 1), ("2001-13-6", "2001-13-06", 0), ("5", "5.0000001", 1),
        ("nan", "nan", 1), ("1e400", "1e400", 1), ("9" * 400, "1.5", 0), ("xx-xx-xx", "xx-xx-xx", 1),
    ],
)  # fmt: skip
def test_values_are_compared_by_kind(gold, said, expected):
    assert score(gold, said) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zürich (city)", "zurich"), ("“x”", "x"), ("a[1]†", "a"), ("[3]", ""), ("[note]", "[note]"),
        ("May 5.", "may 5"),
        ('"a" (b) [c]', "a"), ("1–2", "1-2"),
    ],
)  # fmt: skip
def test_decoration_is_removed(text, expected):
    assert normalise(text) == expected
