"""Bar charts: what is drawn, what is asked, and the forms in which training and evaluation read them."""

import json
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageColor

from eval.tasks.registry import find_task
from internvl.errors import ConfigError, DataError
from internvl.synth.folders import DATASHEET
from internvl.synth.miniature.charts import BUILDER, Chart, ChartSpec, build_charts, draw_chart, main, make_chart
from internvl.synth.miniature.vocabulary import BAR_COLORS, CATEGORIES, list_words


def measure_bars(image: Image.Image) -> dict[str, int]:
    """Pixels from the ground to the top of the bar of every colour."""
    pixels = np.asarray(image)
    heights = {}
    for name, value in BAR_COLORS.items():
        rows = np.nonzero((pixels == ImageColor.getrgb(value)).all(-1).any(1))[0]
        if len(rows):
            heights[name] = int(image.height - 3 - rows[0])
    return heights


@pytest.mark.parametrize("seed", range(20))
def test_answers_are_what_the_picture_shows(seed):
    chart = make_chart(Random(seed))
    image = draw_chart(chart, tile=56)
    heights = measure_bars(image)
    assert image.size == (112, 56)
    assert set(heights) == set(chart.colors)
    assert 3 <= len(heights) <= 5
    (highest, high), (lowest, low) = chart.questions
    assert (highest, lowest) == ("Which bar is highest?", "Which bar is lowest?")
    assert (high, low) == (max(heights, key=heights.__getitem__), min(heights, key=heights.__getitem__))
    ordered = sorted(heights.values())
    assert min(b - a for a, b in pairwise(ordered)) >= 5


def test_colours_are_words_of_the_vocabulary():
    assert set(BAR_COLORS) <= set(CATEGORIES["color"])
    assert {"highest", "lowest", "bar"} <= set(list_words())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("charts")
    assert build_charts(out, ChartSpec("small", 3, num_train=40, num_test=4, tile=56))
    return out


def test_training_samples_ask_both_questions_in_either_order(made):
    folder = made / "annotation" / "charts_small"
    meta = json.loads((folder / "meta.json").read_text())["train_charts"]
    records = [json.loads(line) for line in (made / meta["annotation"]).read_text().splitlines()]
    assert len(records) == meta["length"] == 40
    assert all((made / meta["root"] / record["image"]).is_file() for record in records)
    firsts = {record["conversations"][0]["value"] for record in records}
    assert {text.split("\n")[1].split(" Answer")[0] for text in firsts} == {
        "Which bar is highest?",
        "Which bar is lowest?",
    }
    assert all(len(record["conversations"]) == 4 for record in records)


def test_the_test_has_the_form_of_chartqa(made):
    samples = find_task("vqa/chartqa-test-augmented").read_samples(made / "benchmark")
    assert len(samples) == 8
    assert all(path.is_file() for sample in samples for path in sample.images)
    asked = json.loads((made / "annotation/charts_small/train_charts.jsonl").read_text().splitlines()[0])
    assert asked["conversations"][0]["value"] in {sample.prompt for sample in samples}
    chart_train = (made / "image/charts_small/png/00000.png").read_bytes()
    assert (made / "benchmark/chartqa/png/00000.png").read_bytes() != chart_train


def test_the_same_arguments_give_the_same_files_once(made, tmp_path):
    spec = ChartSpec("small", 3, num_train=40, num_test=4, tile=56)
    assert not build_charts(made, spec)
    build_charts(tmp_path, spec)
    for path in sorted(made.rglob("*.jsonl")):
        assert path.read_bytes() == (tmp_path / path.relative_to(made)).read_bytes()
    with pytest.raises(DataError, match="seed"):
        build_charts(made, ChartSpec("small", 4, num_train=40, num_test=4, tile=56))
    sheet = json.loads((made / "benchmark" / "chartqa" / DATASHEET).read_text())
    assert sheet["builder"] == BUILDER


def test_nothing_to_make_is_an_error():
    with pytest.raises(ConfigError, match="num_train"):
        ChartSpec("none", 0, num_train=0, num_test=0, tile=56)
    with pytest.raises(ConfigError, match="-1"):
        ChartSpec("less", 0, num_train=-1, num_test=4, tile=56)


def test_a_missing_checkpoint_is_an_error_of_one_line(capsys, tmp_path):
    assert main(["--out", str(tmp_path), "--tokenizer", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_chart_keeps_the_order_of_its_bars():
    image = np.asarray(draw_chart(Chart(("red", "blue", "green"), (0.9, 0.5, 0.2)), tile=56))
    masks = [(image == ImageColor.getrgb(BAR_COLORS[name])).all(-1) for name in ("red", "green")]
    red, green = (np.nonzero(mask.any(0))[0] for mask in masks)
    assert red.max() < green.min()
