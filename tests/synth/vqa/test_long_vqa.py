"""Long questions, built as a user builds them; what is made is read by the trainer and by the evaluator."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.tasks.registry import find_task
from internvl.synth.model_reader import load_model_reader
from internvl.synth.vqa.__main__ import main
from internvl.synth.vqa.picture_questions import read_questions
from internvl.tools.make_tiny import TinySpec, make_checkpoint
from tests.synth.built import MAX_NUM, read_jsonl, take_batches


@pytest.fixture(scope="module")
def questions(tmp_path_factory, pictures) -> Path:
    path = tmp_path_factory.mktemp("questions") / "set.jsonl"
    rows = [
        {"image": f"{number}.png", "question": f"What is the word of {number}?", "answer": f"word{number}"}
        for number in range(12)
    ]
    turns = [{"from": "human", "value": "<image>\nWhich letter?"}, {"from": "gpt", "value": "Q"}]
    rows += [{"image": ["3.png"], "conversations": turns}, {"image": "none.png", "question": "x?", "answer": "y"}]
    rows += [{"image": "1.png", "question": "Is it red or blue?", "answer": "red"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def large_tiles(tmp_path_factory) -> Path:
    """A checkpoint with InternVL2's tiles: 448 pixels, 256 tokens."""
    folder = tmp_path_factory.mktemp("pretrained") / "large-tiles"
    make_checkpoint(folder, replace(TinySpec(), image_size=448))
    return folder


@pytest.mark.parametrize(("form", "name"), [("image", "docvqa"), ("paste", "chartqa")])
def test_long_questions_are_read_by_the_benchmark(tmp_path, questions, pictures, large_tiles, form, name):
    out = tmp_path / "out"
    options = f"--annotation {questions} --images {pictures} --model {large_tiles} --name {name} --form {form}"
    options += f" --split val --lengths 16k-32k --num_samples 5 --max_dynamic_patch 4 --out {out}"
    assert main(options.split()) == 0
    samples = find_task(f"longvqa/{name}-32k", prompts="upstream").read_samples(out)
    assert len(samples) == 5
    records = read_jsonl(out / "V2PE-Data" / "val" / "long_vqa_32k" / f"val_long_vqa_{name}_16_32.jsonl")
    reader = load_model_reader(large_tiles, 4)
    root = samples[0].images[0].parents[0 if form == "image" else 1]
    for record, sample in zip(records, samples, strict=True):
        assert all(path.is_file() for path in sample.images)
        assert 16_000 <= reader.count_record(record, root) == record["metadata"]["context_length"] <= 32_000
        asked = record["metadata"]["asked_picture"]
        noun = "page" if form == "image" else "picture"
        assert f"Look at {noun} {asked}. " in sample.prompt
        if form == "image":
            original = (pictures / record["metadata"]["source_image"]).read_bytes()
            assert sample.images[asked - 1].read_bytes() == original
    sheet = json.loads((out / "datasheet.json").read_text())
    assert sheet["checks"]["all_shortcuts_at_chance"] is True
    assert "left out: 1 x answer in the question" in sheet["notes"]
    assert "left out: 1 x picture cannot be read" in sheet["notes"]
    assert len({record["metadata"]["context_length"] for record in records}) > 2


def test_long_training_questions_are_read_by_the_trainer(tmp_path, questions, pictures, checkpoint):
    out = tmp_path / "out"
    options = f"--annotation {questions} --images {pictures} --model {checkpoint} --name mine --form image"
    options += f" --lengths 1k-2k 2k-3k --num_samples 4 --max_dynamic_patch {MAX_NUM} --out {out}"
    assert main(options.split()) == 0
    batches, loader = take_batches(out / "meta.json", load_model_reader(checkpoint, MAX_NUM).encoder, 8)
    assert loader.ledger.num_skipped == 0
    assert sorted(batch["input_ids"].shape[1] > 2000 for batch in batches) == [False] * 4 + [True] * 4


def test_one_length_is_met_to_one_percent(tmp_path, questions, pictures, large_tiles):
    out = tmp_path / "out"
    options = f"--annotation {questions} --images {pictures} --model {large_tiles} --name docvqa --split val"
    assert main(f"{options} --lengths 40k --num_samples 3 --max_dynamic_patch 4 --out {out}".split()) == 0
    (path,) = out.rglob("*.jsonl")
    lengths = [record["metadata"]["context_length"] for record in read_jsonl(path)]
    assert all(39_600 <= length <= 40_000 for length in lengths)


def test_lines_are_read_as_the_trainer_reads_them(tmp_path, pictures):
    path = tmp_path / "odd.jsonl"
    turns = ["Hello!", "Which\u2028word?", "first"]
    said = [{"from": "human" if number == 1 else "gpt", "value": text} for number, text in enumerate(turns)]
    lines = [{"image": "0.png", "conversations": said}, {"image": "1.png", "question": "What?", "answer": "second"}]
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    half = json.dumps({"image": "2.png", "question": "Is it \ud83d?", "answer": "third"})
    path.write_text(whole + half, encoding="utf-8")
    found = read_questions(path, pictures)
    assert [(question.question, question.answer) for question in found.questions] == [
        ("Which word?", "first"), ("What?", "second")
    ]  # fmt: skip
    assert found.dropped == {"half of a surrogate pair in it": 1}
