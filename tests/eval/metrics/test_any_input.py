"""What holds for every scorer: a share comes back whatever the model says, and the exact answer is right."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import (
    anls,
    choice,
    documents,
    dude,
    exact,
    longvideobench,
    longvqa,
    lvbench,
    milebench,
    mlvu,
    mm_niah,
    mmlongbench,
    mmmu,
    mvbench,
    pope,
    relaxed,
    seed,
    slidevqa,
    videomme,
    videomme_v2,
    vnbench,
    vqa,
    wtq,
)
from eval.metrics.protocol import PROTOCOLS
from eval.metrics.spelling import RuleLexicon

OPTIONS = {"A": "Rome", "B": "Paris", "C": "12", "D": "both"}
TEXTS = ["Rome", "Paris", "12", "both"]


def by_protocol(score, **settings):
    """`name (protocol)` -> scorer of (answer, response) for both protocols."""
    return {
        f" {protocol}": lambda answer, response, protocol=protocol: score(
            answer, response, protocol=protocol, **settings
        )
        for protocol in PROTOCOLS
    }


def name_all(name, scorers):
    return {name + protocol: scorer for protocol, scorer in scorers.items()}


# Scorers of an answer text.
TEXT_SCORERS = {
    "anls": anls.score,
    "anls of DUE": anls.score_due,
    "exact": exact.score,
    "vqa m4c": vqa.score_m4c,
    "vqa official": vqa.score_vqa,
    "wtq": wtq.score,
    "milebench contains": lambda answer, response: milebench.score(answer, response, rule="contains"),
    "milebench rouge": lambda answer, response: milebench.score(answer, response, rule="rouge"),
    "mmmu open": mmmu.score_open,
    **name_all("relaxed", by_protocol(relaxed.score)),
    **{
        f"longvqa {task} {protocol}": lambda answer, response, task=task, protocol=protocol: longvqa.score(
            answer, response, task=task, protocol=protocol, lexicon=RuleLexicon()
        )
        for task in longvqa.METRICS
        for protocol in PROTOCOLS
    },
}
# Scorers of an option letter.
LETTER_SCORERS = {
    **name_all("choice", by_protocol(choice.score, options=OPTIONS)),
    **name_all("scienceqa", by_protocol(choice.score_scienceqa, options=OPTIONS)),
    **name_all("ai2d", by_protocol(choice.score_ai2d, options=OPTIONS)),
    **name_all("mmmu", by_protocol(mmmu.score, options=OPTIONS)),
    **name_all("seed", by_protocol(seed.score)),
    "videomme": videomme.score,
    "videomme_v2": videomme_v2.score,
    "longvideobench": longvideobench.score,
    "lvbench": lvbench.score,
    "mlvu": mlvu.score,
    "vnbench": vnbench.score,
}
MMLONGBENCH_GOLDS = {
    "contains": ["red", "Paris"],
    "yes_no": {"text": "No", "default": 1},
    "counts": [2, 1],
    "letter": 3,
    "label": 7,
    "summary": "Costs rose.",
}
DOCUMENT_GOLDS = {"Integer": "5", "Float": "2.5", "String": "page 3", "List": '["a b", 12, "x@y.org"]', "None": "None"}
DOCUMENT_RULES = {"mmlongbench_doc": documents.score_mmlongbench_doc, "longdocurl": documents.score_longdocurl}
OTHER_SCORERS = {
    **{
        f"{name} {kind}": lambda response, rule=rule, kind=kind: rule("['a', 'b']", response, kind=kind)
        for name, rule in DOCUMENT_RULES.items()
        for kind in documents.FORMATS
    },
    **{
        f"dude {name}": lambda response, is_list=is_list: dude.score(
            {"texts": ["a", "b"], "is_list": is_list}, response
        )
        for name, is_list in (("text", False), ("list", True))
    },
    "slidevqa": lambda response: slidevqa.score({"text": "Paris", "question": "which town?"}, response),
    **{
        f"mmlongbench {rule}": lambda response, rule=rule, gold=gold: mmlongbench.score(gold, response, rule=rule)
        for rule, gold in MMLONGBENCH_GOLDS.items()
    },
    **{
        f"mmlongbench {kind}": lambda response, gold={"text": text, "format": kind}: mmlongbench.score(
            gold, response, rule="document"
        )
        for kind, text in DOCUMENT_GOLDS.items()
    },
    "gqa": lambda response: exact.score_gqa("dog", response),
    "pope": lambda response: pope.score("no", response),
    "milebench choice": lambda response: milebench.score("Paris", response, rule="choice", choices=TEXTS),
    "milebench robust": lambda response: milebench.score_choice_robust("Paris", response, choices=TEXTS),
    "milebench needle": lambda response: milebench.score("5342", response, rule="needle"),
    **name_all("mvbench", {key: lambda r, f=f: f("(B) Paris", r) for key, f in by_protocol(mvbench.score).items()}),
    **name_all("mm_niah", {key: lambda r, f=f: f("blue", r) for key, f in by_protocol(mm_niah.is_correct).items()}),
}
SCORERS = {
    **{name: lambda response, f=f: f("12 dogs", response) for name, f in TEXT_SCORERS.items()},
    **{name: lambda response, f=f: f("B", response) for name, f in LETTER_SCORERS.items()},
    **OTHER_SCORERS,
}
ODD_RESPONSES = [
    None,
    "",
    " \n\t ",
    "12%",
    "-12",
    "nan",
    "1e999",
    "ＡＢ１２ İß ½ ﷽",
    "\ud800",
    "\x00",
    ". . .",
    "(((",
    "[" * 50,
    "word " * 3000,
    "1," * 3000,
    "9" * 5000,
]


@pytest.mark.parametrize("name", SCORERS)
def test_every_response_gets_a_share(name):
    for response in ODD_RESPONSES:
        score = SCORERS[name](response)
        assert isinstance(score, float), repr(response)[:40]
        assert 0 <= score <= 1, repr(response)[:40]


@pytest.mark.parametrize("name", SCORERS)
@settings(max_examples=15)
@given(response=st.text(max_size=40))
def test_any_text_gets_a_share(name, response):
    assert 0 <= SCORERS[name](response) <= 1


def test_few_published_rules_take_nothing_for_an_answer():
    """`milebench choice` too, where C is right: its option is Paris, B, here."""
    assert {name for name, score in SCORERS.items() if score("") or score(None)} == {"mvbench upstream"}
    assert milebench.score("12", "", rule="choice", choices=TEXTS) == 1
    assert milebench.score_choice_robust("12", "", choices=TEXTS) == 0
    assert pope.score("yes", "") == 1
    assert anls.score("", "") == vqa.score_m4c("the", "") == 1


@pytest.mark.parametrize("name", TEXT_SCORERS)
@settings(max_examples=15)
@given(answer=st.text("abcdefgh", min_size=3, max_size=8))
def test_the_exact_answer_is_right(name, answer):
    text = " ".join([answer] * 4) if "textcaps" in name or "visualmrc" in name else answer
    assert TEXT_SCORERS[name](text, text) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", LETTER_SCORERS)
def test_the_right_letter_is_right(name):
    score = LETTER_SCORERS[name]
    assert [score(letter, letter) for letter in OPTIONS] == [1] * 4
    assert score("A", "B") == 0


@pytest.mark.parametrize("name", TEXT_SCORERS)
def test_golds_may_be_numbers_lists_or_missing(name):
    score = TEXT_SCORERS[name]
    assert 0 <= score(12, "12") <= 1
    assert score(["12"], "12") == pytest.approx(score("12", "12"))
    assert score(None, "x") == score([], "x") == 0


@settings(max_examples=50)
@given(one=st.text("ab .", max_size=12), other=st.text("ab .", max_size=12))
def test_similarities_do_not_depend_on_the_order(one, other):
    assert anls.score(one, other) == anls.score(other, one)
    assert anls.score_due(one, other) == anls.score_due(other, one)
    assert wtq.score(one, other) == wtq.score(other, one)


@settings(max_examples=30)
@given(golds=st.lists(st.sampled_from(["x", "y", "z"]), min_size=10, max_size=10), data=st.data())
def test_the_order_of_golds_does_not_matter(golds, data):
    shuffled = data.draw(st.permutations(golds))
    for score in (vqa.score_m4c, vqa.score_vqa, anls.score, exact.score):
        assert score(golds, "x") == pytest.approx(score(shuffled, "x"))
