from eval.metrics.exact import normalise_gqa, score, score_gqa


def test_case_and_outer_spaces_are_ignored():
    assert score(["J. Smith", "John Smith"], " john smith\n") == 1
    assert score("A", "A.") == 0


def test_gqa_drops_final_periods_and_keeps_spaces():
    assert normalise_gqa("Left..") == "left"
    assert score_gqa("left", "left ") == 0
    assert score_gqa("left", "LEFT.") == 1
