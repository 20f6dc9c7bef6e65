"""Which questions are shown, and what of them."""

import base64
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.core.result import parse_result
from eval.core.sample import Prediction, Sample
from eval.core.task import Task
from eval.report.answers import AnsweredTask, ScoredAnswer, score_answer
from eval.report.excerpt import cut_middle
from eval.report.gallery import MAX_PROMPT, choose_questions, collect_cards
from eval.report.pictures import MAX_PICTURES, THUMBNAIL_SIDE, Thumbnails
from internvl.data.video import VideoClip
from tests.eval.report.results import make_content

NUMBERS = {"score": 0.5, "stderr": 0.1, "count": 9, "chance": None}


def make_result():
    """A result whose contexts are below and above 1000 tokens."""
    content = json.loads(json.dumps(make_content(task="g/t")))
    bins = [{"low": low, "high": high, **NUMBERS} for low, high in ((None, 1000), (1000, None))]
    numbers = {**content["results"]["official"], "by_length": bins}
    return parse_result({**content, "info": {"data_root": "/data"}, "results": {"official": numbers}}, Path("/runs"))


def predict(sample_id, response, answer="a", failure=None, **metadata):
    return Prediction(str(sample_id), response, answer, metadata, 1200, 3, 40.5, 0.25, failure)


def make_task():
    def score(answer, response, protocol):
        if response == "odd":
            raise ValueError("odd response")
        return 0.5 if response == "half" else float(answer == response)

    return Task("g/t", 1, "here", Path("t"), lambda root: [], 4, 1, score)


def collect(predictions, samples=(), limit=10, max_bytes=10**6, folder=None):
    task = replace(make_task(), read_samples=lambda root: list(samples))
    results = {run: make_result() for run in predictions}
    runs = {
        run: {entry.id: ScoredAnswer(entry, score_answer(task, entry, "official")) for entry in answered}
        for run, answered in predictions.items()
    }
    thumbnails = Thumbnails(folder, max_bytes=max_bytes)
    return collect_cards(AnsweredTask(task, results, runs), limit=limit, thumbnails=thumbnails)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 900, 3), dtype=np.uint8)).save(path)
    return path


def test_failed_questions_come_first_then_wrong_ones_then_right_ones():
    answers = [predict(0, "a"), predict(1, "b"), predict(2, "half"), predict(3, "", failure="out of memory")]
    cards = collect({"s": answers})
    assert [card.id for card in cards] == ["3", "1", "2", "0"]
    assert [card.states for card in cards] == [("wrong", "failed", "empty"), ("wrong",), ("wrong",), ("right",)]


def test_a_quarter_is_left_for_right_answers_and_questions_are_spread():
    answers = {str(i): {"s": ScoredAnswer(predict(i, "a"), float(i % 10 == 0))} for i in range(100)}
    chosen = [int(sample_id) for sample_id in choose_questions(answers, 20)]
    assert len(chosen) == len(set(chosen)) == 20
    assert sum(i % 10 == 0 for i in chosen) == 5
    assert max(chosen) > 80
    assert choose_questions(answers, 0) == []


def test_without_wrong_answers_right_ones_fill_the_place():
    answers = {str(i): {"s": ScoredAnswer(predict(i, "a"), 1.0)} for i in range(9)}
    assert len(choose_questions(answers, 4)) == 4


def test_settings_that_disagree_are_marked():
    [first, second] = collect({"x": [predict(0, "a"), predict(1, "a")], "y": [predict(0, "b"), predict(1, "a")]})
    assert first.states == ("wrong", "lost", "differ")
    assert second.states == ("right",)
    assert [response.run for response in first.responses] == ["x", "y"]
    assert "1,200 tokens, 3 tiles, last position 40.5" in first.responses[0].cost


def test_answers_that_cannot_be_scored_are_shown_without_a_score():
    cards = collect({"s": [predict(0, "a", answer=None), predict(1, "odd")]})
    assert [card.states for card in cards] == [("unscored",), ("unscored",)]
    assert cards[0].gold == "not public"


def test_long_texts_are_cut_in_the_middle():
    sample = Sample("0", "b" * 50_000 + "question?", (), "a")
    [card] = collect({"s": [predict(0, "z" * 50_000)]}, [sample])
    prompt = "".join(part.text for part in card.prompt)
    assert len(prompt) < MAX_PROMPT + 100
    assert prompt.endswith("question?")
    assert "characters ...]" in prompt
    assert len(card.responses[0].text) < 3000
    assert cut_middle("short", 10) == "short"


def test_pictures_are_few_small_and_evenly_spread(picture):
    sample = Sample("0", "?", (picture,) * 50, "a")
    [card] = collect({"s": [predict(0, "a")]}, [sample])
    assert len(card.pictures) == MAX_PICTURES
    assert card.pictures[0].caption == "1 of 50"
    assert card.pictures[-1].caption == "42 of 50"
    assert all(shown.thumbnail.address.startswith("data:image/jpeg;base64,") for shown in card.pictures)
    assert all((shown.thumbnail.width, shown.thumbnail.height) == (THUMBNAIL_SIDE, 67) for shown in card.pictures)


def test_the_limit_of_bytes_holds(picture):
    copies = [picture.with_name(f"{index}.png") for index in range(5)]
    for copy in copies:
        copy.write_bytes(picture.read_bytes())
    sample = Sample("0", "?", tuple(copies), "a", needles=(3,))
    address = collect({"s": [predict(0, "a")]}, [sample])[0].pictures[0].thumbnail.address
    size = len(base64.b64decode(address.partition(",")[2]))
    [card] = collect({"s": [predict(0, "a")]}, [sample], max_bytes=int(2.5 * size))
    assert [shown.caption for shown in card.pictures if shown.thumbnail] == ["needle, 4 of 5", "1 of 5"]


def test_pictures_beside_the_page_are_written_once_and_old_ones_removed(picture, tmp_path):
    folder = tmp_path / "page_pictures"
    folder.mkdir()
    (folder / "old.jpg").write_bytes(b"")
    samples = [Sample(str(index), "?", (picture,), "a") for index in range(2)]
    answers = {"s": [predict(0, "a"), predict(1, "a")]}
    first, second = collect(answers, samples, max_bytes=None, folder=folder)
    assert first.pictures == second.pictures
    address = first.pictures[0].thumbnail.address
    assert Image.open(tmp_path / address).size == (THUMBNAIL_SIDE, 67)
    assert len(list(folder.iterdir())) == 2
    thumbnails = Thumbnails(folder)
    thumbnails.make(0, lambda: Image.new("RGB", (4, 4)))
    thumbnails.remove_others()
    assert [Image.open(path).size for path in folder.iterdir()] == [(4, 4)]


def test_the_needle_comes_first_of_any_number_of_pictures_and_is_marked_in_the_prompt(picture):
    prompt = "begin " + "<image>\n" * 1500 + "hidden fact. " + "filler " * 2000 + "What?"
    sample = Sample("0", prompt, (picture,) * 1500, "a", needles=(700, "hidden fact."))
    [card] = collect({"s": [predict(0, "a", placed_depth=0.47, context_length=4000)]}, [sample])
    assert [shown.caption for shown in card.pictures[:2]] == ["needle, 701 of 1500", "1 of 1500"]
    assert [shown.is_needed for shown in card.pictures] == [True, False, False, False, False, False]
    assert [part.text for part in card.prompt if part.is_needle] == ["<image>", "hidden fact."]
    assert (card.prompt[0].text[:5], card.prompt[-1].text[-5:]) == ("begin", "What?")
    assert (card.facts["depth"], card.depth, card.length) == ("0.47", "0.4-0.6", "1k+")


def test_without_known_needles_their_depths_choose_the_pictures(picture):
    sample = Sample("0", "<image>" * 100 + "?", (picture,) * 100, "a")
    [card] = collect({"s": [predict(0, "a", placed_depth=[0.5, 1.0])]}, [sample])
    assert [shown.caption for shown in card.pictures[:2]] == [
        "near depth 0.50, 51 of 100",
        "near depth 1.00, 100 of 100",
    ]
    assert (card.facts["depth"], card.depth) == ("0.50, 1.00", "0.6-0.8")
    [few] = collect({"s": [predict(0, "a", placed_depth=0.5)]}, [Sample("0", "?", (picture,) * 6, "a")])
    assert [shown.caption for shown in few.pictures] == [f"{number} of 6" for number in range(1, 7)]


def test_media_that_cannot_be_read_do_not_stop_the_page(picture, tmp_path, caplog):
    sample = Sample("0", "?", (tmp_path / "gone.png", picture), "a", videos=(VideoClip(tmp_path / "gone.mp4"),))
    with caplog.at_level(logging.WARNING):
        [card] = collect({"s": [predict(0, "a")]}, [sample])
    assert [shown.thumbnail is not None for shown in card.pictures] == [False, True, False]
    assert "gone.png" in caplog.text


def test_frames_of_a_video_are_shown(tmp_path, picture):
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(10):
        (folder / f"{index}.png").write_bytes(picture.read_bytes())
    [card] = collect({"s": [predict(0, "a")]}, [Sample("0", "?", (), "a", videos=(VideoClip(folder),))])
    assert len(card.pictures) == 4
    assert all(shown.thumbnail and shown.caption.startswith("frame ") for shown in card.pictures)


def test_facts_are_short_and_leave_the_question_out():
    metadata = {"context_length": 56000.0, "question": "q", "columns": {"a": 1}, "note": "x" * 200, "depth": 0.25}
    [card] = collect({"s": [predict(0, "a", **metadata)]})
    assert card.facts == {"context_length": "56000", "depth": "0.25"}
    assert [part.text for part in card.prompt] == ["q"]
