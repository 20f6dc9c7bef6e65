"""Needles in a corpus, built as a user builds them; what is made is read by the trainer and by the evaluator."""

import json
import subprocess
import time

import pytest

from eval.tasks.registry import find_task
from internvl.synth.needles.__main__ import main
from internvl.synth.needles.quizzes import TASKS
from internvl.synth.shortcuts import count_words
from tests.synth.built import items_of, read_files, read_jsonl, take_batches
from tests.warm_python import warm_python


@pytest.mark.parametrize("task", TASKS)
def test_items_are_read_by_the_benchmark_and_have_the_asked_length(needles, tiled_reader, task):
    samples = find_task(f"mm_niah/{task}-test", prompts="upstream").read_samples(needles)
    items = items_of(needles, task)
    assert len(samples) == 20
    for number, (item, sample) in enumerate(zip(items, samples, strict=True)):
        asked = 8000 if number < 10 else 10_000
        visual = sum(tiled_reader.count_image(path) for path in sample.images[: len(item["images_list"])])
        length = tiled_reader.count_text(item["context"]) + visual
        assert length == item["meta"]["context_length"]
        assert abs(length - asked) <= 0.01 * asked
        assert all(path.is_file() for path in sample.images)


@pytest.mark.parametrize("task", TASKS)
def test_needles_stand_once_where_they_should(needles, tiled_reader, task):
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
                visual = sum(tiled_reader.count_image(root / name) for name in item["images_list"][:places])
                measured = (tiled_reader.count_text(before) + visual) / item["meta"]["context_length"]
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


def test_training_files_are_read_by_the_trainer_and_asked_as_evaluation_asks(needles, tiled_reader):
    batches, loader = take_batches(needles / "meta.json", tiled_reader.encoder, 18)
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
    command = [warm_python(), "-m", "internvl.synth.needles", *needles_options, "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    parts = tmp_path / "set.partial" / "parts"
    while process.poll() is None and not any(parts.glob("*.jsonl")):
        time.sleep(0.02)
    process.kill()
    process.communicate()  # until it and its workers are gone
    assert not out.exists()
    made = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.jsonl")}
    assert made
    assert main([*needles_options, "--out", str(out)]) == 0
    assert read_files(out) == read_files(needles)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_what_is_there_is_not_made_again_nor_replaced_unasked(needles, needles_options, capsys):
    before = read_files(needles)
    assert main([*needles_options, "--out", str(needles)]) == 0
    assert main([*needles_options, "--seed", "4", "--out", str(needles)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert read_files(needles) == before


def test_a_corpus_without_text_or_images_is_a_clear_error(tmp_path, checkpoint, capsys):
    (tmp_path / "corpus").mkdir()
    options = ["--corpus", str(tmp_path / "corpus"), "--model", str(checkpoint), "--out", str(tmp_path / "out")]
    assert main([*options, "--test_lengths", "8k"]) == 2
    assert "holds no text" in capsys.readouterr().err
    (tmp_path / "corpus" / "a.txt").write_text("Words and more words.\n\n" * 50)
    assert main([*options, "--test_lengths", "8k"]) == 2
    assert "can carry a needle" in capsys.readouterr().err
    assert main([*options, "--test_lengths", "8k", "--num_test", "1", "--tasks", "retrieval-text"]) == 0
