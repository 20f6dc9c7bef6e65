import json
from pathlib import Path

import pytest

from eval.core.sample import Prediction
from eval.core.scoring import (
    check_length_edges,
    score_by_length,
    score_predictions,
    score_with_baselines,
    write_scores,
)
from eval.core.task import Scored, Task, Upload
from internvl.errors import ConfigError, EvalError


def make_task(**options):
    defaults = {
        "name": "g/t",
        "version": 1,
        "source": "here",
        "annotation": Path("t.jsonl"),
        "read_samples": lambda root: [],
        "max_new_tokens": 4,
        "max_num": 1,
        "score_answer": lambda answer, response, protocol: float(answer == response),
        "protocols": ("official", "upstream"),
    }
    return Task(**(defaults | options))


def predict(response, answer="a", failure=None, **metadata):
    return Prediction("x", response, answer, metadata, 1, 0, 0.0, 0.0, failure)


def test_failed_and_empty_answers_stay_in_the_denominator():
    numbers = score_predictions(
        make_task(), [predict("a"), predict("", failure="out of memory"), predict(" ")], protocol="official"
    )
    assert numbers["score"] == pytest.approx(1 / 3)
    assert (numbers["count"], numbers["num_failed"], numbers["num_empty"]) == (3, 1, 2)


def test_chance_is_the_mean_and_unknown_when_one_is_missing():
    known = [predict("a", chance=0.1), predict("a", chance=0.3)]
    assert score_predictions(make_task(), known, protocol="official")["chance"] == pytest.approx(0.2)
    assert score_predictions(make_task(), [*known, predict("a")], protocol="official")["chance"] is None


def test_tasks_of_long_questions_have_bins_of_length_and_depth_and_short_ones_where_asked():
    long = [predict("a", context_length=n, placed_depth=d) for n, d in ((500, 0.1), (9000, 0.5), (9000, 1.0))]
    numbers = score_predictions(make_task(), long, protocol="official")
    assert [(row["low"], row["high"], row["count"]) for row in numbers["by_length"]] == [
        (None, 1000, 1), (8000, 12000, 2),
    ]  # fmt: skip
    grid = numbers["by_depth_and_length"]
    assert (grid["counts"][0], grid["counts"][4]) == ((1, 0, 0, 0, 0), (0, 0, 1, 0, 1))
    half = score_predictions(make_task(), [*long, predict("a", context_length=9000)], protocol="official")
    assert half["by_depth_and_length"]["counts"] == grid["counts"]
    short = [predict("a", context_length=500), predict("b", context_length=700)]
    assert "by_length" not in score_predictions(make_task(), short, protocol="official")
    asked = score_predictions(make_task(), short, protocol="official", length_edges=(600,))
    assert [row["score"] for row in asked["by_length"]] == [1.0, 0.0]
    assert "by_depth_and_length" not in asked
    assert "by_length" not in score_predictions(make_task(), [*long, predict("a")], protocol="official")


def test_length_bins_are_right_open_and_keep_short_and_long():
    scored = [Scored(float(n % 2), {"context_length": n, "chance": 0.5}) for n in (50, 100, 199, 200, 900)]
    rows = score_by_length(scored, (100, 200, 400))
    assert [(r["low"], r["high"], r["count"]) for r in rows] == [
        (None, 100, 1),
        (100, 200, 2),
        (200, 400, 1),
        (400, None, 1),
    ]
    assert [r["score"] for r in rows] == [0.0, 0.5, 0.0, 0.0]
    assert all(r["chance"] == 0.5 for r in rows)


@pytest.mark.parametrize("edges", [[], [0, 1], [5, 5], [9, 3], [-1]])
def test_wrong_length_bins_are_refused(edges):
    with pytest.raises(ConfigError, match="rising"):
        check_length_edges(edges)


def test_all_protocols_are_written_and_the_headline_is_chosen(tmp_path):
    task = make_task(score_answer=lambda answer, response, protocol: 1.0 if protocol == "upstream" else 0.0)
    for protocol, expected in ((None, "official"), ("upstream", "upstream")):
        write_scores(tmp_path, task, [predict("a")], settings={"x": 1}, info={}, protocol=protocol)
        content = json.loads((tmp_path / "scores.json").read_text())
        assert content["protocol"] == expected
        assert {name: r["score"] for name, r in content["results"].items()} == {"official": 0.0, "upstream": 1.0}


def test_without_public_answers_there_is_no_score_but_an_upload(tmp_path):
    upload = Upload("upload.txt", lambda predictions: "".join(p.response for p in predictions))
    predictions = [predict("b", answer=None), predict("", answer=None, failure="out of memory")]
    result = write_scores(tmp_path, make_task(uploads=(upload,)), predictions, settings={}, info={})
    expected = {"score": None, "stderr": None, "count": 2, "num_failed": 1, "num_empty": 1, "chance": None}
    assert result.scores["official"].numbers == expected
    assert result.headline.estimate is None
    assert (tmp_path / "upload.txt").read_text() == "b"


def test_one_missing_answer_among_others_is_an_error():
    task = make_task(score_answer=lambda answer, response, protocol: float(answer["letter"] == response))
    with pytest.raises(EvalError, match="cannot be scored"):
        score_predictions(task, [predict("a", answer={"letter": "a"}), predict("a", answer=None)], protocol="official")


def test_aggregation_sees_answers_and_responses_and_may_set_the_score():
    def aggregate(scored, edges):
        (item,) = scored
        return {"score": 0.25, "seen": (item.answer, item.response, item.protocol)}

    numbers = score_predictions(make_task(aggregate=aggregate), [predict("b")], protocol="upstream")
    assert (numbers["score"], numbers["seen"]) == (0.25, ("a", "b", "upstream"))


def test_unknown_protocol_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="official, upstream"):
        write_scores(tmp_path, make_task(), [predict("a")], settings={}, info={}, protocol="mine")


def test_answers_that_cannot_be_scored_name_the_sample():
    def refuse(answer, response, protocol):
        raise TypeError("odd answer")

    with pytest.raises(EvalError, match=r"'x': cannot be scored \(TypeError: odd answer\)"):
        score_predictions(make_task(score_answer=refuse), [predict("a")], protocol="official")


@pytest.mark.parametrize("chance", [{"a": 1}, "half", float("nan"), 1e-320])
def test_a_damaged_chance_level_of_one_question_is_an_error_of_the_task(chance):
    # The mean chance level leaves it out, since the other question has none.
    with pytest.raises(EvalError, match="g/t: the baselines cannot be measured"):
        score_with_baselines(make_task(), [predict("a", chance=chance), predict("a")], protocol="official")


def test_damaged_metadata_is_an_error_of_the_task():
    def aggregate(scored, edges):
        return {"mean": sum(item.metadata["context_length"] for item in scored)}

    for metadata in ({}, {"context_length": []}, {"context_length": None}):
        with pytest.raises(EvalError, match="the answers cannot be averaged"):
            score_predictions(make_task(aggregate=aggregate), [predict("a", **metadata)], protocol="official")
