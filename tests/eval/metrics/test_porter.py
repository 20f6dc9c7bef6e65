"""Porter's stemmer: every step, and what NLTK changed."""

import pytest

from eval.metrics.porter import stem

STEMS = {
    **{"caresses": "caress", "ponies": "poni", "ties": "tie", "caress": "caress", "cats": "cat"},
    **{"feed": "feed", "agreed": "agre", "plastered": "plaster", "bled": "bled", "motoring": "motor", "sing": "sing"},
    **{"conflated": "conflat", "troubled": "troubl", "sized": "size", "hopping": "hop", "falling": "fall"},
    **{"fizzed": "fizz", "failing": "fail", "filing": "file", "died": "die", "carried": "carri"},
    **{"happy": "happi", "enjoy": "enjoy", "by": "by", "spy": "spi"},
    **{"relational": "relat", "conditional": "condit", "generalization": "gener", "radically": "radic"},
    **{"geology": "geolog", "hopefully": "hope", "possibly": "possibl"},
    **{"electrical": "electr", "goodness": "good", "formative": "form"},
    **{"adoption": "adopt", "onion": "onion", "replacement": "replac", "communism": "commun"},
    **{"probate": "probat", "rate": "rate", "cease": "ceas", "controlling": "control", "roll": "roll"},
    **{"skies": "sky", "dying": "die", "innings": "inning", "proceed": "proceed", "2020s": "2020", "": ""},
}


@pytest.mark.parametrize(("word", "expected"), STEMS.items())
def test_stems(word, expected):
    assert stem(word) == expected
