"""The report page as a reader gets it: built from saved predictions and, where there is a browser, shown by one."""

import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.report.__main__ import main as report
from eval.report.compare import compare_settings
from eval.report.rows import read_rows
from eval.score import main as score

TASK = "mm_niah/retrieval-text-test"
EVIL = '<script>document.title = "hacked"</script><img src=x onerror="document.title=1">'
STRIDES = (16, 64)

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[1] / "browser.py")
_browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_browser)


class Cards(HTMLParser):
    """States and visibility of every question of a page."""

    def __init__(self, text):
        super().__init__()
        self.states, self.hidden = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "article":
            self.states.append(attributes["data-states"].split())
            self.hidden.append("hidden" in attributes)


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
    assert text.count("data:image/jpeg;base64,") == sum(1 + i % 3 for i in range(12))
    assert "failed: out of memory" in text
    assert "secret 5. What is the secret?" in text
    assert EVIL not in text
    assert text.count("<script>") == 1


def test_the_page_has_a_bounded_size(runs):
    text = make_page(runs, "--samples", "4").read_text()
    assert len(Cards(text).states) == 4
    assert "4 of 12 questions" in text
    without = make_page(runs, "--picture_mib", "0").read_text()
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
    assert "v2pe_fix stride 64" in text


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
    assert "12 of 12 questions shown" in whole
    assert "<title>Evaluation</title>" in whole
    assert len(re.findall(r"<tr", whole)) > 4
    assert whole.count("<svg") == 4  # by length, by stride, two heat-maps
    assert not any(Cards(whole).hidden)
    for state, text in (("right", ""), ("failed", ""), ("differ", ""), ("wrong", "hacked")):
        cards = Cards(browser.read(page, f"#show={state}&find={text}"))
        shown = [states for states, is_hidden in zip(cards.states, cards.hidden, strict=True) if not is_hidden]
        expected = {"right": 8, "failed": 1, "differ": 1, "wrong": 1}[state]
        assert len(shown) == expected, state
        assert all(state in states for states in shown)


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
def test_a_page_about_many_questions_shows_some_of_them_and_counts_all(benchmark_root, record, saved_runs, tmp_path):
    num = 5_000
    benchmark_root.write("retrieval-text", [record(index) for index in range(num)])
    responses = ["blue" if index % 3 else f"red {index}" for index in range(num)]
    saved_runs.write(tmp_path / "runs", TASK, responses, data_root=benchmark_root.root, failures=range(0, num, 50))
    assert score([str(tmp_path / "runs")]) == 0
    page = make_page(tmp_path / "runs")
    assert page.stat().st_size < 500_000
    assert 0 < len(Cards(page.read_text()).states) < num / 10
    assert {row.count for row in read_rows(page.with_suffix(".json"))} == {num}


def test_json_rows_feed_the_comparison(runs):
    rows = read_rows(make_page(runs).with_suffix(".json"))
    [*differences] = compare_settings(rows, "v2pe_fix stride 16")
    assert {difference.setting for difference in differences} == {"v2pe_fix stride 64"}
