import json
from collections import Counter
from random import Random

import pytest

from internvl.data.storage.media import read_image_size
from internvl.data.tiling import Tiling
from internvl.errors import ConfigError
from internvl.synth.contexts import PieceCounter
from internvl.synth.miniature.benchmark_items import TEXT_TASK, BenchmarkSpec, draw_items
from internvl.synth.miniature.digit_layouts import PAIR
from internvl.synth.miniature.miniature_set import BENCHMARK_FOLDER
from internvl.synth.miniature.tile_contexts import write_context
from internvl.synth.model_reader import TextCounter
from tests.synth.miniature.test_tile_contexts import DIGITS, MAKER, MANGO, show

TASKS = (TEXT_TASK, *PAIR.tasks)
META = {
    "placed_depth",
    "context_length",
    "context_length_text",
    "context_length_image",
    "num_images",
    "needles",
    "choices",
    "choices_image_path",
    "length_factor",
    "chance",
}


@pytest.fixture(scope="module")
def items(dataset):
    folder = dataset / BENCHMARK_FOLDER / "annotations"
    return {task: [json.loads(line) for line in (folder / f"{task}.jsonl").open()] for task in TASKS}


def count_prompt_tokens(reader, item, tiles_per_image):
    """The context as the model reads it: placeholders written out, then tokenised as one text."""
    pieces = item["context"].split("<image>")
    images = [f"<img>{'<IMG_CONTEXT>' * reader.num_image_token * tiles}</img>" for tiles in tiles_per_image]
    text = pieces[0] + "".join(image + piece for image, piece in zip(images, pieces[1:], strict=True))
    return len(reader.encoder.text.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_items_have_mm_niah_fields(items):
    for task, rows in items.items():
        assert len({row["id"] for row in rows}) == len(rows) == 20
        for row in rows:
            assert set(row) == {"id", "images_list", "context", "question", "answer", "meta"}
            assert set(row["meta"]) == META
            assert isinstance(row["answer"], str)
            assert row["answer"] not in row["question"]
            assert row["meta"]["chance"] == pytest.approx(0.1)
            assert (row["context"] + row["question"]).count("<image>") == len(row["images_list"])
            assert row["id"].startswith(task)


def test_context_length_is_what_the_model_reads(items, dataset, reader):
    folder = dataset / BENCHMARK_FOLDER / "images"
    for row in items["retrieval-text"]:
        sizes = [read_image_size(folder / path) for path in row["images_list"]]
        tiles = [Tiling(1, 64, 56).count(*size) for size in sizes]
        meta = row["meta"]
        assert sum(tiles) == 24 * meta["length_factor"] + 2
        assert meta["context_length"] == count_prompt_tokens(reader, row, tiles)
        assert meta["context_length_image"] == reader.num_image_token * sum(tiles)
        assert meta["context_length"] == meta["context_length_text"] + meta["context_length_image"]


def test_longer_contexts_have_no_more_text(items):
    def mean_text(factor):
        lengths = [
            r["meta"]["context_length_text"] for r in items["retrieval-text"] if r["meta"]["length_factor"] == factor
        ]
        return sum(lengths) / len(lengths)

    assert mean_text(4) < 1.2 * mean_text(1)


@pytest.mark.parametrize("task", TASKS)
def test_depths_are_spread_evenly_at_every_length(items, task):
    cells = Counter((row["meta"]["length_factor"], int(row["meta"]["placed_depth"] * 5)) for row in items[task])
    assert cells == {(factor, fifth): 2 for factor in (1, 4) for fifth in range(5)}


def test_tasks_ask_the_same_contexts(items):
    contexts = [[row["context"] for row in rows] for rows in items.values()]
    assert contexts[0] == contexts[1] == contexts[2]
    assert len(set(contexts[0])) == len(contexts[0])


def test_needles_hold_the_answers(items):
    for row in items["retrieval-text"]:
        (needle,) = row["meta"]["needles"]
        assert row["context"].count(needle) == 1
        assert row["answer"] in needle
    for task in ("retrieval-image", "reasoning-image"):
        assert all(row["images_list"].count(row["meta"]["needles"][0]) == 1 for row in items[task])
    assert {row["question"] for row in items["retrieval-image"]} == {"Which digit is first?"}
    assert {row["question"] for row in items["reasoning-image"]} == {"Which digit is second?"}


def test_items_read_as_evaluation_samples(dataset):
    from eval.tasks.registry import find_task

    for name in TASKS:
        task = find_task(f"mm_niah/{name}-test")
        samples = task.read_samples(dataset / "benchmark")
        assert len(samples) == 20
        assert all(path.is_file() for sample in samples for path in sample.images)


def count_words(text):
    return TextCounter(lambda text, add_special_tokens: {"input_ids": text.split()})(text)


def test_counter_adds_markers_and_visual_tokens():
    context = write_context([MANGO, DIGITS], [show("a.jpg", 3), MANGO, DIGITS])
    assert PieceCounter(count_words).count(context.pieces) == (2 + 2 + 2, 12 + 8)


def test_contexts_too_short_for_five_depths_are_an_error():
    spec = BenchmarkSpec(base_tiles=1, factors=(1,), num_items=25)
    with pytest.raises(ConfigError, match="raise base_tiles"):
        list(draw_items(spec, MAKER, PieceCounter(count_words), Random(0)))
