import pytest

from eval.metrics.spelling import RuleLexicon


@pytest.mark.parametrize(
    ("stem", "root"),
    [
        ("walk", "walk"), ("runn", "run"), ("mak", "make"), ("danc", "dance"), ("call", "call"), ("handl", "handle"),
        ("build", "build"), ("str", None), ("someth", None), ("be", "be"), ("locat", "locate"),
        ("rid", "rid"), ("12", None),
    ],
)  # fmt: skip
def test_roots_follow_spelling(stem, root):
    assert RuleLexicon().find_root(stem) == root


@pytest.mark.parametrize(
    ("noun", "singular"),
    [
        ("dogs", "dog"), ("glasses", "glass"), ("cities", "city"), ("boxes", "box"), ("women", "woman"), ("men", "men"),
        ("was", "wa"), ("is", "is"), ("bus", "bus"), ("this", "this"), ("tennis", "tennis"),
        ("firemen", "fireman"), ("", ""),
        ("it's", "it's"), ("potatoes", "potato"), ("viruses", "virus"), ("tvs", "tv"),
    ],
)  # fmt: skip
def test_singulars_follow_spelling(noun, singular):
    assert RuleLexicon().find_singular(noun) == singular
