import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from PIL import Image

from internvl.data.tiling import Tiling
from internvl.errors import ConfigError
from internvl.synth.miniature.benchmark_items import TEXT_TASK
from internvl.synth.miniature.digit_layouts import CORNERS, LAYOUTS
from internvl.synth.miniature.image_pool import ImageNeedle, PoolSpec, make_pool
from internvl.synth.miniature.miniature_set import BENCHMARK_FOLDER, build_miniature
from internvl.synth.miniature.training_records import TrainFile, TrainingSpec, draw_records
from tests.synth.built import read_jsonl
from tests.synth.miniature.test_tile_contexts import MAKER

ORDER, SIDES = CORNERS.tasks


@pytest.fixture(scope="module")
def corners(tmp_path_factory, spec, reader):
    out = tmp_path_factory.mktemp("corners")
    build_miniature(out, replace(spec, digits="corners", train_files=(TrainFile(0, 2, 12),)), reader)
    return out


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (((0, 0), (1, 1)), {"first": 3, "second": 8, "left": 3, "right": 8}),
        (((1, 0), (0, 1)), {"first": 3, "second": 8, "left": 8, "right": 3}),
    ],
)
def test_words_name_the_order_or_the_side(cells, said):
    needle = ImageNeedle("needle.png", (3, 8), 16, cells)
    assert {word: needle.find_digit(word) for word in CORNERS.words} == said


@pytest.mark.parametrize("name", LAYOUTS)
def test_digits_are_named_in_reading_order_in_columns_of_their_own(name):
    for cells in LAYOUTS[name].places:
        assert sorted(cells, key=lambda cell: cell[::-1]) == list(cells)
        assert len({column for column, _ in cells}) == 2


def test_pictures_show_digits_in_opposite_corners(tmp_path):
    spec = PoolSpec(tile=56, num_image_token=4, max_num=64, image_tiles=(), num_needles=6, layout=CORNERS)
    for needle in make_pool(tmp_path, spec, split="test", rng=Random(0)).needles:
        image = np.asarray(Image.open(tmp_path / needle.path))
        tiles = image.reshape(2, 56, 2, 56).any(axis=(1, 3))
        assert {(column, row) for row, column in np.argwhere(tiles)} == set(needle.cells)
        assert (Tiling(1, 64, 56).count(*image.shape), needle.num_visual) == (4, 16)


def test_items_ask_for_the_order_and_for_the_side(corners):
    folder = corners / BENCHMARK_FOLDER
    items = {task: read_jsonl(folder / "annotations" / f"{task}.jsonl") for task in (TEXT_TASK, *CORNERS.tasks)}
    assert len({len(rows) for rows in items.values()}) == 1
    assert {row["question"] for row in items[ORDER]} == {"Which digit is first?", "Which digit is second?"}
    assert {row["question"] for row in items[SIDES]} == {"Which digit is left?", "Which digit is right?"}
    assert all(row["meta"]["chance"] == pytest.approx(0.1) for rows in items.values() for row in rows)
    contexts = [[row["context"] for row in rows] for rows in items.values()]
    assert contexts[0] == contexts[1] == contexts[2]


def test_items_read_as_evaluation_samples(corners):
    from eval.tasks.registry import find_task

    for name in CORNERS.tasks:
        samples = find_task(f"mm_niah/{name}-test").read_samples(corners / "benchmark")
        assert len(samples) == 20


def test_training_asks_for_every_word(corners, spec):
    (record, *_) = read_jsonl(corners / spec.annotation_folder / "train_long_mr_0_2.jsonl")
    questions = json.dumps(record["conversations"])
    assert all(f"Which digit is {word}?" in questions for word in CORNERS.words)


def test_answers_follow_the_layout():
    cells = CORNERS.places[1]
    pool = replace(MAKER.pool, needles=(ImageNeedle("needle.png", (3, 8), 16, cells),))
    maker = replace(MAKER, pool=pool)
    training = TrainingSpec(words=CORNERS.words)
    (record,) = draw_records(TrainFile(0, 2, 1), training, maker, Random(0))
    turns = record["conversations"]
    said = {q["value"].splitlines()[-2]: a["value"] for q, a in zip(turns[::2], turns[1::2], strict=True)}
    answers = [said[f"Which digit is {word}?"] for word in CORNERS.words]
    assert answers == ["3", "8", "8", "3"]


def test_an_unknown_layout_is_an_error(spec):
    with pytest.raises(ConfigError, match="pair or corners"):
        replace(spec, digits="circle")
