"""Which questions are shown, and what of them."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.core.sample import Prediction, Sample
from eval.core.task import Task
from eval.report.gallery import (
    MAX_PICTURES,
    MAX_PROMPT,
    THUMBNAIL_SIDE,
    Thumbnails,
    choose_questions,
    collect_cards,
    cut_middle,
)
from internvl.data.video import VideoClip


def predict(sample_id, response, answer="a", failure=None, **metadata):
    return Prediction(str(sample_id), response, answer, metadata, 1200, 3, 40.5, 0.25, failure)


def make_task():
    def score(answer, response, protocol):
        if response == "odd":
            raise ValueError("odd response")
        return 0.5 if response == "half" else float(answer == response)

    return Task("g/t", 1, "here", Path("t"), lambda root: [], 4, 1, score)


def collect(predictions, samples=None, limit=10, max_bytes=10**6):
    return collect_cards(
        make_task(), predictions, samples or {}, protocol="official", limit=limit, thumbnails=Thumbnails(max_bytes)
    )


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 900, 3), dtype=np.uint8)).save(path)
    return path


def test_failed_questions_come_first_then_wrong_ones_then_right_ones():
    answers = [predict(0, "a"), predict(1, "b"), predict(2, "half"), predict(3, "", failure="out of memory")]
    cards = collect({"s": answers})
    assert [card.id for card in cards] == ["3", "1", "2", "0"]
    assert [card.states for card in cards] == [("failed", "empty", "wrong"), ("wrong",), ("wrong",), ("right",)]


def test_a_quarter_is_left_for_right_answers_and_questions_are_spread():
    answers = {str(i): {"s": (predict(i, "a"), float(i % 10 == 0))} for i in range(100)}
    chosen = [int(sample_id) for sample_id in choose_questions(answers, 20)]
    assert len(chosen) == len(set(chosen)) == 20
    assert sum(i % 10 == 0 for i in chosen) == 5
    assert max(chosen) > 80
    assert choose_questions(answers, 0) == []


def test_without_wrong_answers_right_ones_fill_the_place():
    answers = {str(i): {"s": (predict(i, "a"), 1.0)} for i in range(9)}
    assert len(choose_questions(answers, 4)) == 4


def test_settings_that_disagree_are_marked():
    [first, second] = collect({"x": [predict(0, "a"), predict(1, "a")], "y": [predict(0, "b"), predict(1, "a")]})
    assert first.states == ("wrong", "differ")
    assert second.states == ("right",)
    assert [response.setting for response in first.responses] == ["x", "y"]
    assert "1,200 tokens, 3 tiles, last position 40.5" in first.responses[0].cost


def test_answers_that_cannot_be_scored_are_shown_without_a_score():
    cards = collect({"s": [predict(0, "a", answer=None), predict(1, "odd")]})
    assert [card.states for card in cards] == [("unscored",), ("unscored",)]
    assert cards[0].gold == "not public"


def test_long_texts_are_cut_in_the_middle():
    sample = Sample("0", "b" * 50_000 + "question?", (), "a")
    [card] = collect({"s": [predict(0, "z" * 50_000)]}, {"0": sample})
    assert len(card.prompt) < MAX_PROMPT + 100
    assert card.prompt.endswith("question?")
    assert "characters ...]" in card.prompt
    assert len(card.responses[0].text) < 3000
    assert cut_middle("short", 10) == "short"


def test_pictures_are_few_small_and_evenly_spread(picture):
    sample = Sample("0", "?", (picture,) * 50, "a")
    [card] = collect({"s": [predict(0, "a")]}, {"0": sample})
    assert len(card.pictures) == MAX_PICTURES
    assert card.pictures[0].caption == "1 of 50"
    assert card.pictures[-1].caption == "42 of 50"
    assert all(shown.source.startswith("data:image/jpeg;base64,") for shown in card.pictures)
    assert all(len(shown.source) < 2 * THUMBNAIL_SIDE**2 for shown in card.pictures)


def test_the_limit_of_bytes_holds(picture):
    sample = Sample("0", "?", (picture,) * 5, "a")
    size = len(collect({"s": [predict(0, "a")]}, {"0": sample})[0].pictures[0].source)
    [card] = collect({"s": [predict(0, "a")]}, {"0": sample}, max_bytes=int(2.5 * size))
    assert [bool(shown.source) for shown in card.pictures] == [True, True, False, False, False]


def test_media_that_cannot_be_read_do_not_stop_the_page(picture, tmp_path, caplog):
    sample = Sample("0", "?", (tmp_path / "gone.png", picture), "a", videos=(VideoClip(tmp_path / "gone.mp4"),))
    with caplog.at_level(logging.WARNING):
        [card] = collect({"s": [predict(0, "a")]}, {"0": sample})
    assert [bool(shown.source) for shown in card.pictures] == [False, True, False]
    assert "gone.png" in caplog.text


def test_frames_of_a_video_are_shown(tmp_path, picture):
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(10):
        (folder / f"{index}.png").write_bytes(picture.read_bytes())
    [card] = collect({"s": [predict(0, "a")]}, {"0": Sample("0", "?", (), "a", videos=(VideoClip(folder),))})
    assert len(card.pictures) == 4
    assert all(shown.source and shown.caption.startswith("frame ") for shown in card.pictures)


def test_facts_are_short_and_leave_the_question_out():
    metadata = {"context_length": 56000.0, "question": "q", "columns": {"a": 1}, "note": "x" * 200, "depth": 0.25}
    [card] = collect({"s": [predict(0, "a", **metadata)]})
    assert card.facts == {"context_length": "56000", "depth": "0.25"}
    assert card.prompt == "q"
