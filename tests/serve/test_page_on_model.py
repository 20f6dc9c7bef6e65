"""The chat page in a real headless Chromium, against the real server with the tiny model."""

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
from PIL import Image

from internvl.synth.miniature.charts import draw_chart, make_chart
from internvl.synth.questions import SHORT_ANSWER_SENTENCE
from tests.data.numbered_videos import write_video
from tests.serve.browser import ask, attach, expect, last_position, open_browser, open_page, picture, set_slider

CHART = make_chart(Random(3))
(QUESTION, ANSWER), (NEXT_QUESTION, NEXT_ANSWER) = [
    (f"{question} {SHORT_ANSWER_SENTENCE}", answer) for question, answer in CHART.questions
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, client) -> Iterator:
    with open_page(browser, str(client.base_url).removesuffix("v1/")) as page:
        yield page


def chart() -> dict:
    return picture("chart.png", draw_chart(CHART, tile=56))


def test_the_model_answers_about_a_chart_and_again_in_the_next_turn(page):
    ask(page, QUESTION, chart())
    ask(page, NEXT_QUESTION)
    expect(page.locator(".answer .text")).to_have_text([ANSWER, NEXT_ANSWER])
    expect(page.locator("[data-fact=tiles] dd")).to_have_text(["2", "2"])


def test_the_slider_moves_the_last_position_as_the_stride_says(page):
    page.get_by_label("Compare two strides").check()
    page.get_by_label("Version").first.select_option("v2pe_fix")
    set_slider(page, "#first-choice", 0)
    set_slider(page, "#second-choice", 2)
    ask(page, QUESTION, chart())
    expect(page.locator(".answer h3")).to_have_text(["v2pe_fix, stride 1", "v2pe_fix, stride 4"])
    short, plain = (int(last_position(page, column)) for column in (0, 1))
    assert plain - short == 2 * 4 - 2 * 1  # two tiles of four tokens
    expect(page.locator("figcaption").nth(1)).to_contain_text(f"{plain + 1} tokens on {plain + 1} positions")
    expect(page.locator(".legend").nth(0)).to_contain_text("Picture 1: 8 tokens × 1/4 = 2 positions")


def test_frames_of_a_video_are_counted_and_named(page, tmp_path):
    video = write_video(tmp_path / "clip.mp4", 20)
    attach(page, {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": video.read_bytes()})
    ask(page, "What happens?")
    num_frames = int(page.locator("[data-fact=frames] dd").inner_text())
    assert num_frames > 1
    assert page.locator(".band.words").count() >= num_frames
    assert page.locator(".band title").all_text_contents()[1].startswith("Frame 1: ")


def test_a_picture_over_the_limit_is_told_and_the_question_stays(page):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)  # does not compress: 1.9 MB
    ask(page, "What is this?", picture("noise.png", Image.fromarray(noise)))
    expect(page.get_by_role("alert")).to_contain_text("more than 1 MiB; send smaller pictures, or fewer (413)")
    expect(page.get_by_label("Question", exact=True)).to_have_value("What is this?")
    expect(page.locator("#attachments img")).to_have_attribute("alt", "noise.png")
