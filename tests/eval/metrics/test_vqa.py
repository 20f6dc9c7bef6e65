import pytest

from eval.metrics.vqa import score, score_m4c, score_vqa, share_of_people


@pytest.mark.parametrize(("num_agreeing", "share"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_three_others_make_an_answer_right(num_agreeing, share):
    golds = ["cat"] * num_agreeing + ["dog"] * (10 - num_agreeing)
    assert share_of_people(golds, "cat") == pytest.approx(share)


def test_one_gold_is_right_or_wrong():
    assert score_m4c(["cat"], "Cat") == 1
    assert score_m4c("cat", "dog") == 0


def test_the_official_rule_is_raw_where_people_agree():
    assert score_vqa(["yes"] * 10, "Yes") == 0
    assert score_vqa(["yes"] * 9 + ["yeah"], "Yes.") == 1
    assert score_m4c(["yes"] * 10, "Yes") == 1


def test_protocols_choose_the_scorer():
    golds = ["2"] * 10
    assert (score(golds, "two", protocol="official"), score(golds, "two", protocol="upstream")) == (0, 1)
