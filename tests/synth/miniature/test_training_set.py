import json
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from internvl.data.encode import SampleEncoder, TextOptions
from internvl.data.meta import load_meta
from internvl.data.records import RecordFile
from internvl.data.storage.media import read_image_size
from internvl.data.tiling import Tiling
from internvl.data.visuals import TileOptions
from internvl.synth.miniature.training_set import TrainFile, TrainingSpec, build_record
from internvl.synth.miniature.vocabulary import SHORT_ANSWER_SENTENCE
from tests.synth.miniature.test_contexts import POOL, SENTENCES, SPEC

TRAINING = TrainingSpec(SPEC)


def draw(file, seed, spec=TRAINING):
    return build_record(spec, file, POOL, SENTENCES, Random(seed))


def count_drawn_tiles(record):
    return sum(2 if path.startswith("needle") else int(path.split("_")[0]) for path in record["image"]) - 2


@pytest.fixture(scope="module")
def records(dataset, spec):
    folder = dataset / spec.annotation_folder
    return {file: [json.loads(line) for line in (folder / f"{file.name}.jsonl").open()] for file in spec.train_files}


def test_turns_alternate_and_only_the_first_has_images():
    turns = draw(TrainFile(0, 32, 1), 0)["conversations"]
    assert len(turns) == 16
    assert all((a["from"], b["from"]) in {("human", "gpt"), ("gpt", "human")} for a, b in pairwise(turns))
    assert "<image>" in turns[0]["value"]
    assert not any("<image>" in turn["value"] for turn in turns[1:])
    assert all(turn["value"].endswith(f"\n{SHORT_ANSWER_SENTENCE}") for turn in turns[::2])


def test_every_needle_is_asked_once_and_answered_from_the_context():
    for seed in range(10):
        turns = draw(TrainFile(0, 32, 1), seed)["conversations"]
        questions = [turn["value"].splitlines()[-2] for turn in turns[::2]]
        assert len(set(questions)) == 8
        context = turns[0]["value"].partition("\n")[0]
        for question, answer in zip(questions, turns[1::2], strict=True):
            value = answer["value"]
            assert value not in question
            if "digit" not in question:
                assert context.count(f'Note "{value}".') == 1


def test_digit_answers_follow_the_needle_image():
    record = draw(TrainFile(0, 32, 1), 3)
    shown = next(needle.digits for needle in POOL.needles if needle.path in record["image"])
    turns = record["conversations"]
    said = {q["value"].splitlines()[-2]: a["value"] for q, a in zip(turns[::2], turns[1::2], strict=True)}
    assert (said["Which digit is first?"], said["Which digit is second?"]) == tuple(map(str, shown))


def test_questions_come_in_random_order():
    firsts = {draw(TrainFile(0, 8, 1), seed)["conversations"][0]["value"].splitlines()[-2] for seed in range(60)}
    assert len(firsts) == 10


def test_number_of_questions_can_be_limited():
    record = draw(TrainFile(0, 8, 1), 0, replace(TRAINING, num_questions=3))
    assert len(record["conversations"]) == 6


@pytest.mark.parametrize(("skew", "low", "high"), [(1.0, 14, 18), (2.0, 9, 12)])
def test_lengths_fill_the_range_and_skew_prefers_short(skew, low, high):
    spec = replace(TRAINING, length_skew=skew)
    tiles = [count_drawn_tiles(draw(TrainFile(0, 32, 1), seed, spec)) for seed in range(400)]
    assert (min(tiles), max(tiles)) == (0, 32)
    assert low < sum(tiles) / len(tiles) < high


def test_files_have_the_samples_and_images_asked_for(dataset, spec, records):
    images = dataset / spec.image_folder / "train"
    for file, rows in records.items():
        assert len(rows) == file.num_samples
        for row in rows:
            assert row["conversations"][0]["value"].count("<image>") == len(row["image"])
            sizes = [read_image_size(images / path) for path in row["image"]]
            tiles = sum(Tiling(1, 64, 56).count(*size) for size in sizes)
            assert file.min_tiles <= tiles - 2 <= file.max_tiles


def test_meta_files_load(dataset, spec):
    folder = dataset / spec.annotation_folder
    sources = load_meta(folder / "meta.json", data_root=dataset)
    assert [source.name for source in sources] == ["train_long_mr_0_2", "train_long_mr_0_24"]
    assert all(source.max_dynamic_patch == 64 and source.dynamic_image_size for source in sources)
    assert load_meta(folder / "meta_0_24.json", data_root=dataset) == [sources[1]]


def test_records_become_documents_with_two_supervised_tokens_per_answer(dataset, spec, reader):
    source = load_meta(dataset / spec.annotation_folder / "meta_0_24.json", data_root=dataset)[0]
    encoder = SampleEncoder(
        text=TextOptions(
            tokenizer=reader.tokenizer,
            conversation_name="internlm2-chat",
            num_image_token=reader.num_image_token,
        ),
        tiles=TileOptions(image_size=reader.tile, dynamic_image_size=True),
    )
    for row in range(5):
        record = RecordFile(source)[row]
        document = encoder.encode(record, np.random.default_rng(0))
        supervised = document.labels[document.labels != -100].tolist()
        answers = [text for role, text in record.turns if role == "assistant"]
        assert len(supervised) == 2 * len(answers)
        assert reader.tokenizer.decode(supervised) == "".join(f"{answer}<|im_end|>" for answer in answers)
        assert len(document.input_ids) - 4 * sum(document.tiles_per_image) < 250  # little text
