"""The report page as a reader gets it: built from saved predictions and, where there is a browser, shown by one."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.report.__main__ import main as report
from eval.score import main as score

TASK = "mm_niah/retrieval-text-test"
EVIL = '<script>document.title = "hacked"</script><img src=x onerror="document.title=1">'
STRIDES = (16, 64)

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[1] / "browser.py")
_browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_browser)


class Cards(HTMLParser):
    """States of every question of a page: of the elements, and of those that are text until they are reached."""

    def __init__(self, text, *, with_rest=True):
        super().__init__()
        self.states, self.in_rest = [], False
        self.with_rest = with_rest
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.in_rest = attributes.get("type") == "application/json"
        if tag == "article":
            self.states.append(attributes["data-states"].split())

    def handle_data(self, text):
        if self.in_rest and self.with_rest and text.strip():
            for element in json.loads(text):
                self.states += Cards(element).states


@pytest.fixture
def runs(benchmark_root, record, saved_runs, tmp_path):
    """Two strides, 12 questions: 0 failed, 1 empty, 2 evil, 3 differs between the strides, the others right."""
    benchmark_root.write("retrieval-text", [record(i, num_images=1 + i % 3, chance=0.1) for i in range(12)])
    for stride in STRIDES:
        responses = ["blue"] * 12
        responses[1:3] = ["", EVIL]
        responses[3] = "blue" if stride == 64 else "red"
        saved_runs.write(
            tmp_path / "runs" / str(stride),
            TASK,
            responses,
            data_root=benchmark_root.root,
            failures=(0,),
            stride=stride,
        )
    assert score([str(tmp_path / "runs"), "--length_bins", "100", "200", "400"]) == 0
    return tmp_path / "runs"


def make_page(runs, *flags):
    page = runs / "page.html"
    assert report([str(runs), "--out", str(page), *flags]) == 0
    return page


def test_questions_stand_with_their_pictures_and_all_responses(runs):
    text = make_page(runs).read_text()
    cards = Cards(text)
    assert len(cards.states) == 12
    assert [("failed" in s, "empty" in s, "differ" in s, "right" in s) for s in cards.states[:4]] == [
        (True, True, False, False),
        (False, True, False, False),
        (False, False, False, False),
        (False, False, True, False),
    ]
    assert len(re.findall(r"page_pictures/\w+\.jpg", text)) == sum(1 + i % 3 for i in range(12))
    assert {f"page_pictures/{path.name}" for path in (runs / "page_pictures").iterdir()} == set(
        re.findall(r"page_pictures/\w+\.jpg", text)
    )
    assert "failed: out of memory" in text
    assert "<mark>secret</mark> 5. What is the secret?" in text
    assert EVIL not in text
    assert text.count("<script>") == 1


def test_the_page_has_a_bounded_size(runs):
    text = make_page(runs, "--samples", "4").read_text()
    assert len(Cards(text).states) == 4
    assert "4 of 12 questions, worst first" in text
    inside = make_page(runs, "--one_file").read_text()
    assert inside.count("data:image/jpeg;base64,") == sum(1 + i % 3 for i in range(12))
    without = make_page(runs, "--one_file", "--picture_mib", "0").read_text()
    assert "data:image/jpeg" not in without
    assert "(not shown)" in without
    assert "article" not in make_page(runs, "--samples", "0").read_text()


def test_without_the_data_questions_have_neither_prompt_nor_picture(runs, benchmark_root, caplog):
    (benchmark_root.root / "MM-NIAH/mm_niah_test/annotations/retrieval-text.jsonl").unlink()
    text = make_page(runs).read_text()
    assert len(Cards(text).states) == 12
    assert "data:image/jpeg" not in text
    assert "prompts and pictures are not shown" in caplog.text


def test_damaged_predictions_cost_the_questions_and_not_the_page(runs, caplog):
    path = runs / "16" / TASK / "predictions.jsonl"
    path.write_text(path.read_text()[:-9])
    text = make_page(runs).read_text()
    assert Cards(text).states == []
    assert "no questions are shown" in caplog.text
    assert "V2PE stride 64" in text


def test_scores_alone_are_enough_for_the_tables(runs):
    for path in runs.rglob("predictions.jsonl"):
        path.unlink()
    text = make_page(runs).read_text()
    assert Cards(text).states == []
    assert "by stride" in text


def test_two_reports_of_the_same_runs_are_equal(runs):
    first = make_page(runs).read_text()
    assert make_page(runs).read_text() == first


@pytest.mark.slow
def test_a_real_browser_shows_the_page_and_filters_its_questions(runs, tmp_path):
    """Chromium builds the tables, runs the page's own script and no other, and reads the filter from the address."""
    page, browser = make_page(runs), _browser.Browser(tmp_path / "profile")
    whole = browser.read(page)
    assert "12 of 12 questions" in whole
    assert "<title>Evaluation</title>" in whole
    assert len(re.findall(r"<tr", whole)) > 4
    assert whole.count("<svg") == 4  # by length, by stride, two heat-maps
    assert len(Cards(whole).states) == 12
    views = {"show=right": 8, "show=failed": 1, "show=differ": 1, "show=gained": 1}
    views |= {"show=wrong&find=hacked": 1, "find=SECRET 5": 1, "length=100-200": 3, "length=100-200&depth=0.0-0.2": 1}
    for view, expected in views.items():
        text = browser.read(page, f"#{view}")
        assert len(Cards(text).states) == expected, view
        assert f"{expected} of 12 questions" in text


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--one_file",)])
def test_a_real_browser_loads_the_pictures(runs, tmp_path, flags):
    page = make_page(runs, *flags)
    with _browser.open_page(page, width=390) as opened:
        opened.locator(".card img").first.scroll_into_view_if_needed()
        opened.wait_for_function("document.images[0].naturalWidth > 0")
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        score = opened.locator(".tasks .score b").first.bounding_box()
        assert score["x"] + score["width"] < 390


@pytest.mark.slow
def test_a_photograph_of_the_page_has_content_in_light_and_width(runs, tmp_path):
    page, browser = make_page(runs), _browser.Browser(tmp_path / "profile")
    browser.photograph(page, tmp_path / "page.png", width=1200, height=1600)
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape == (1600, 1200, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    filled = (pixels.astype(int).std(axis=2) > 12).any(axis=1)  # rows with colour: own scores, plots, heat-maps
    assert filled.mean() > 0.2


@pytest.mark.slow
def test_a_page_of_20000_questions_opens_at_once_and_keeps_its_document_small(
    benchmark_root, record, saved_runs, tmp_path
):
    num = 20_000
    benchmark_root.write("retrieval-text", [record(index) for index in range(num)])
    responses = ["blue" if index % 3 else f"red {index}" for index in range(num)]
    saved_runs.write(tmp_path / "runs", TASK, responses, data_root=benchmark_root.root, failures=range(0, num, 50))
    assert score([str(tmp_path / "runs")]) == 0
    page = make_page(tmp_path / "runs", "--samples", str(num))
    with _browser.open_page(page) as opened:
        assert opened.locator("output").inner_text() == "20,000 of 20,000 questions"
        assert opened.evaluate("document.querySelectorAll('*').length") < 3000
        assert opened.evaluate("performance.timing.domComplete - performance.timing.navigationStart") < 10_000
        opened.locator("input[type=search]").fill("red 1500")
        opened.wait_for_function("document.querySelector('output').textContent.startsWith('4 of')")
        assert (
            opened.locator(".card").count() == 4
        )  # 1500 failed; 15000, 15003, 15006 and 15009 did not (150 more digits)
