"""The builders of long data, run as a user runs them; what they make is read by the trainer and by the evaluator."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.tasks.registry import find_task
from internvl.data.loader import build_train_loader
from internvl.data.meta import load_meta
from internvl.data.plan import RowOptions
from internvl.synth.corpus.lengths import load_model_reader, parse_length
from internvl.synth.miniature.sentences import read_paragraphs
from internvl.synth.needles import haystack, long_mr
from internvl.synth.needles.riddles import TASKS
from internvl.synth.quality import count_words
from internvl.synth.vqa import long_vqa
from internvl.tools.make_tiny import TinySpec, make_checkpoint

MAX_NUM = 4


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        shape = (80 + 10 * (number % 3), 90 + 25 * (number % 4), 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, pictures) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    paragraphs = read_paragraphs()
    for number in range(6):
        (folder / f"{number}.png").write_bytes((pictures / f"{number}.png").read_bytes())
        text = "\n\n".join(paragraphs[40 * number : 40 * number + 40])
        (folder / f"text{number}.md").write_text(
            f"![a picture]({number}.png)\n\n{text}\n\n<img> and <image> <|im_end|>"
        )
    (folder / "loose.png").write_bytes((pictures / "7.png").read_bytes())
    (folder / "page.html").write_text(f"<p>{paragraphs[300]}</p><script>var x;</script><img src='5.png'><p>End.</p>")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def needles_options(corpus, checkpoint) -> list[str]:
    options = f"--corpus {corpus} --model {checkpoint} --max_dynamic_patch {MAX_NUM} --seed 3 --test_share 0.4"
    return f"{options} --train_lengths 2k-3k --num_train 3 --test_lengths 8k 10k --num_test 10".split()


@pytest.fixture(scope="module")
def needles(tmp_path_factory, needles_options) -> Path:
    out = tmp_path_factory.mktemp("needles") / "set"
    assert long_mr.main([*needles_options, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def reader(checkpoint):
    return load_model_reader(checkpoint, MAX_NUM)


def take_batches(meta, encoder, number):
    loader = build_train_loader(load_meta(meta), encoder, RowOptions(num_streams=1))
    batches = iter(loader)
    return [next(batches) for _ in range(number)], loader


# long_mr


def items_of(root, task):
    return read_jsonl(root / "MM-NIAH" / "mm_niah_test" / "annotations" / f"{task}.jsonl")


@pytest.mark.parametrize("task", TASKS)
def test_items_are_read_by_the_benchmark_and_have_the_asked_length(needles, reader, task):
    samples = find_task(f"mm_niah/{task}-test", prompts="upstream").read_samples(needles)
    items = items_of(needles, task)
    assert len(samples) == 20
    for number, (item, sample) in enumerate(zip(items, samples, strict=True)):
        asked = 8000 if number < 10 else 10_000
        visual = sum(reader.count_image(path) for path in sample.images[: len(item["images_list"])])
        length = reader.count_text(item["context"]) + visual
        assert length == item["meta"]["context_length"]
        assert abs(length - asked) <= 0.01 * asked
        assert all(path.is_file() for path in sample.images)


@pytest.mark.parametrize("task", TASKS)
def test_needles_stand_once_where_they_should(needles, reader, task):
    means = []
    for item in items_of(needles, task):
        depths = item["meta"]["placed_depth"]
        depths = depths if isinstance(depths, list) else [depths]
        assert depths == sorted(depths)
        means.append(sum(depths) / len(depths))
        for needle, depth in zip(item["meta"]["needles"], depths, strict=True):
            if needle in item["images_list"]:
                assert item["images_list"].count(needle) == 1
                assert item["images_list"][0] != needle
            else:
                assert item["context"].count(needle) == 1
                before = item["context"].partition(needle)[0]
                places = before.count("<image>")
                root = needles / "MM-NIAH" / "mm_niah_test" / "images"
                visual = sum(reader.count_image(root / name) for name in item["images_list"][:places])
                measured = (reader.count_text(before) + visual) / item["meta"]["context_length"]
                assert measured == pytest.approx(depth, abs=2e-3)
    fifths = [sum(int(mean * 5) == cell for mean in means) for cell in range(5)]
    assert min(fifths) >= 2


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_the_needles_and_not_from_the_question(needles, task):
    kind, needle = task.split("-")
    for item in items_of(needles, task):
        answer, meta = item["answer"], item["meta"]
        if kind == "counting":
            assert len(answer) == len(meta["needles"]) == len(meta["placed_depth"])
            if needle == "text":
                assert answer == [int(sentence.split(" counted ")[1].split()[0]) for sentence in meta["needles"]]
            continue
        if isinstance(answer, int) and meta["choices"]:
            answer = meta["choices"][answer]
        if isinstance(answer, str):
            assert count_words(item["question"], answer) == 0
        if isinstance(answer, str) and needle == "text":
            assert any(count_words(sentence, answer) for sentence in meta["needles"])
            assert count_words(item["context"], answer) == 1


def test_training_files_are_read_by_the_trainer_and_asked_as_evaluation_asks(needles, reader):
    batches, loader = take_batches(needles / "meta.json", reader.encoder, 18)
    assert loader.ledger.num_skipped == 0
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert all(1980 <= length <= 3000 for length in lengths)
    assert max(lengths) - min(lengths) > 100
    values = [
        turn["conversations"][0]["value"]
        for path in (needles / "annotation").glob("*.jsonl")
        for turn in read_jsonl(path)
    ]
    closings = {value.rsplit("\n", 1)[1] for value in values}
    samples = [s for task in TASKS for s in find_task(f"mm_niah/{task}-test", prompts="upstream").read_samples(needles)]
    of_evaluation = {sample.prompt.rsplit("\n", 1)[1] for sample in samples}
    is_fixed = {closing for closing in closings if closing.startswith("Answer")}
    assert is_fixed == {closing for closing in of_evaluation if closing.startswith("Answer")}


def test_training_and_test_share_no_image_and_the_datasheet_says_what_was_checked(needles):
    train = {data for name, data in read_files(needles / "image").items()}
    test = {data for name, data in read_files(needles / "MM-NIAH").items() if name.endswith((".png", ".jpg"))}
    assert train
    assert not train & test
    sheet = json.loads((needles / "datasheet.json").read_text())
    assert sheet["checks"]["all_shortcuts_at_chance"] is True
    assert set(sheet["checks"]["shortcuts"]["retrieval-image, free"]) == {
        "question only", "text only", "first image only"
    }  # fmt: skip
    assert all(facts["largest_deviation"] <= 0.01 for facts in sheet["files"].values())
    assert any("broken.jpg" in note for note in sheet["notes"])
    assert "| yes |" in (needles / "datasheet.md").read_text()


def test_a_killed_builder_goes_on_and_makes_the_same_files(tmp_path, needles, needles_options):
    out = tmp_path / "set"
    command = [
        sys.executable,
        "-m",
        "internvl.synth.needles.long_mr",
        *needles_options,
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    parts = tmp_path / "set.partial" / "parts"
    while process.poll() is None and not any(parts.glob("*.jsonl")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    made = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.jsonl")}
    assert made
    assert long_mr.main([*needles_options, "--out", str(out)]) == 0
    assert read_files(out) == read_files(needles)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_what_is_there_is_not_made_again_nor_replaced_unasked(needles, needles_options, capsys):
    before = read_files(needles)
    assert long_mr.main([*needles_options, "--out", str(needles)]) == 0
    assert long_mr.main([*needles_options, "--seed", "4", "--out", str(needles)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert read_files(needles) == before


def test_a_corpus_without_text_or_images_is_a_clear_error(tmp_path, checkpoint, capsys):
    (tmp_path / "corpus").mkdir()
    options = ["--corpus", str(tmp_path / "corpus"), "--model", str(checkpoint), "--out", str(tmp_path / "out")]
    assert long_mr.main([*options, "--test_lengths", "8k"]) == 2
    assert "holds no text" in capsys.readouterr().err
    (tmp_path / "corpus" / "a.txt").write_text("Words and more words.\n\n" * 50)
    assert long_mr.main([*options, "--test_lengths", "8k"]) == 2
    assert "can carry a needle" in capsys.readouterr().err
    assert long_mr.main([*options, "--test_lengths", "8k", "--num_test", "1", "--tasks", "retrieval-text"]) == 0


# haystack


@pytest.mark.parametrize("task", ["retrieval-text", "counting-text", "reasoning-image"])
def test_extended_samples_keep_needles_questions_and_answers(tmp_path, needles, checkpoint, reader, task):
    folder = needles / "MM-NIAH" / "mm_niah_test"
    out = tmp_path / "long"
    options = f"--annotation {folder}/annotations/{task}.jsonl --images {folder}/images --model {checkpoint}"
    options += f" --out {out} --lengths 128k --num_samples 3 --max_dynamic_patch {MAX_NUM}"
    assert haystack.main(options.split()) == 0
    kind, needle = task.split("-")
    name = f"mm_niah/{task}-128k-test" if kind == "counting" else f"mm_niah_long/{task}-test-128k"
    samples = find_task(name, prompts="upstream").read_samples(out)
    assert len(samples) == 3
    (path,) = out.rglob("*.jsonl")
    for old, new, sample in zip(items_of(needles, task), read_jsonl(path), samples, strict=False):
        visual = sum(reader.count_image(image) for image in sample.images[: len(new["images_list"])])
        length = reader.count_text(new["context"]) + visual
        assert length == new["meta"]["context_length"]
        assert abs(length - 128_000) <= 1280
        assert (new["question"], new["answer"]) == (old["question"], old["answer"])
        assert np.shape(new["meta"]["placed_depth"]) == np.shape(old["meta"]["placed_depth"])
        assert np.allclose(new["meta"]["placed_depth"], old["meta"]["placed_depth"], atol=0.1)
        foreign = {needle for item in items_of(needles, task) for needle in item["meta"]["hidden"]}
        assert not any(line in foreign for line in set(new["context"].splitlines()) - set(old["context"].splitlines()))
        assert not (set(new["images_list"]) - set(old["images_list"])) & foreign
        for found in old["meta"]["needles"]:
            where = new["images_list"] if needle == "image" else new["context"]
            assert where.count(found) == 1


def test_counts_that_go_image_by_image_get_a_zero_for_every_new_image(tmp_path, pictures, checkpoint):
    lines = []
    for number in range(3):
        context = "".join(f"Sentence {number} {n}. <image>\n" for n in range(4))
        meta = {"placed_depth": [0.2, 0.6], "context_length": 100, "needles": ["a", "b"]}
        images = [f"{(number + n) % 12}.png" for n in range(4)]
        record = {"id": number, "images_list": images, "context": context, "question": "How many in each?"}
        lines.append({**record, "answer": [1, 0, 2, 0], "meta": meta})
    annotation = tmp_path / "counting-image.jsonl"
    annotation.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = f"--annotation {annotation} --images {pictures} --model {checkpoint} --out {tmp_path / 'out'}"
    assert haystack.main(f"{options} --lengths 1k --num_samples 3 --max_dynamic_patch 4".split()) == 0
    for record in items_of(tmp_path / "out", "counting-image-1k"):
        assert len(record["answer"]) == len(record["images_list"]) > 4
        assert [count for count in record["answer"] if count] == [1, 2]


# long_vqa


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
    assert long_vqa.main(options.split()) == 0
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
    assert long_vqa.main(options.split()) == 0
    batches, loader = take_batches(out / "meta.json", load_model_reader(checkpoint, MAX_NUM).encoder, 8)
    assert loader.ledger.num_skipped == 0
    assert sorted(batch["input_ids"].shape[1] > 2000 for batch in batches) == [False] * 4 + [True] * 4


def test_one_length_is_met_to_one_percent(tmp_path, questions, pictures, large_tiles):
    out = tmp_path / "out"
    options = f"--annotation {questions} --images {pictures} --model {large_tiles} --name docvqa --split val"
    assert long_vqa.main(f"{options} --lengths 40k --num_samples 3 --max_dynamic_patch 4 --out {out}".split()) == 0
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
    found = long_vqa.read_questions(path, pictures)
    assert [(question.question, question.answer) for question in found.questions] == [
        ("Which word?", "first"), ("What?", "second")
    ]  # fmt: skip
    assert found.dropped == {"half of a surrogate pair in it": 1}


@pytest.mark.parametrize("text", ["", "8q", "0", "4k-2k", "-3"])
def test_wrong_lengths_are_refused(text):
    with pytest.raises(Exception, match=r"length|shortest"):
        parse_length(text)


def test_lengths_are_read_as_people_write_them():
    lengths = [parse_length(text) for text in ("8k", "1M", "16k-32k", "131072", "1.5k")]
    assert [(length.low, length.high) for length in lengths] == [
        (8000, 8000), (10**6, 10**6), (16_000, 32_000), (131_072, 131_072), (1500, 1500)
    ]  # fmt: skip
