"""MM-NIAH from 128k to 1M: files, bins, and the two ways of answering."""

import json

import pytest

from eval.run.__main__ import main
from eval.run.teacher_forcing import TeacherForcing
from eval.tasks.mm_niah_long import FAMILY, LENGTHS, summarise, write_gold
from eval.tasks.registry import find_task, select_tasks
from internvl.errors import ConfigError, EvalError
from internvl.infer.session import Session
from internvl.infer.settings import Sampling
from tests.eval.published import write_mm_niah, write_mm_niah_long


@pytest.fixture
def root(tmp_path):
    write_mm_niah(tmp_path)
    write_mm_niah_long(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("retrieval-image-test-128k", "long_mr_128k/test_long_mr_image_retrieval_64_128.jsonl"),
        ("reasoning-text-test-256k", "long_mr_256k/test_long_mr_text_reasoning_128_256.jsonl"),
        ("retrieval-text-test-512k", "long_mr_512k/test_long_mr_text_retrieval_256_512.jsonl"),
        ("reasoning-image-test-1M", "long_mr_1m/test_long_mr_image_reasoning_512_1200.jsonl"),
    ],
)
@pytest.mark.parametrize("ending", ["", "-teacher-forced"])
def test_files_have_their_published_names(name, file, ending):
    task = find_task(f"mm_niah_long/{name}{ending}")
    assert str(task.annotation) == f"V2PE-Data/val/{file}"
    assert task.max_num == 12
    assert (task.write_gold is not None) == bool(ending)


def test_all_are_listed_but_the_teacher_forced(root):
    tasks = select_tasks("mm_niah_long")
    assert len(tasks) == 4 * len(LENGTHS)
    assert all(task.write_gold is None for task in tasks)
    for task in tasks:
        sample = task.read_samples(root)[0]
        assert sample.images[0] == root / "MM-NIAH/mm_niah_test/images/1.png"
    with pytest.raises(ConfigError, match="unknown task"):
        find_task("mm_niah_long/counting-text-test-1M")


def test_options_are_answered_with_letters():
    assert [write_gold(answer) for answer in (0, 2, "blue", "3.5")] == ["A", "C", "blue", "3.5"]


def test_summary_keeps_the_two_ways_apart():
    def result(score):
        return {"results": {p: {"score": score, "stderr": 0.1, "count": 5, "x": 1} for p in ("official", "upstream")}}

    found = {"retrieval-image-test-1M": result(0.5), "retrieval-image-test-1M-teacher-forced": result(0.75)}
    table = summarise(found)
    assert table["generated"]["official"] == {"retrieval-image": {"1M": {"score": 0.5, "stderr": 0.1, "count": 5}}}
    assert table["teacher_forced"]["upstream"]["retrieval-image"]["1M"]["score"] == 0.75
    assert set(FAMILY.names) >= {"retrieval-image-test-1M"}


@pytest.fixture
def session(checkpoint):
    return Session.from_pretrained(checkpoint, device="cpu")


def test_a_model_that_is_fed_its_own_words_goes_on_as_it_would(session):
    """Token by token, what is most probable behind the model's own beginning is its greedy answer."""
    ids = []
    for _ in range(5):
        forcing = TeacherForcing(session.tokenizer, "x")
        forcing._gold_ids = [*ids, 0]
        session.answer(
            "What is the secret?",
            max_new_tokens=forcing.num_tokens,
            sampling=Sampling(logits_processor=forcing.as_list),
        )
        assert forcing._said_ids[:-1] == ids
        ids = forcing._said_ids
    assert session.answer("What is the secret?", max_new_tokens=5).text == forcing.read_response() != ""


def test_only_the_first_token_is_free_of_what_is_fed(session):
    said = []
    for gold in ("blue sky and sea", "red car on a road"):
        forcing = TeacherForcing(session.tokenizer, gold)
        session.answer("What?", max_new_tokens=forcing.num_tokens, sampling=Sampling(logits_processor=forcing.as_list))
        said.append(forcing._said_ids)
    assert said[0][0] == said[1][0]
    assert said[0] != said[1]


def test_forced_tokens_are_those_of_the_answer_in_its_place(session):
    ids = TeacherForcing(session.tokenizer, "blue")._gold_ids
    whole = session.tokenizer("<|im_start|>assistant\nblue")["input_ids"]
    assert whole[-len(ids) :] == ids


def test_a_gold_answer_without_tokens_is_refused(session):
    with pytest.raises(EvalError, match="'' has no tokens"):
        TeacherForcing(session.tokenizer, "")


def test_both_ways_run_beside_each_other_in_bins_of_their_own(root, checkpoint, tmp_path):
    names = ["mm_niah_long/retrieval-image-test-1M", "mm_niah_long/retrieval-image-test-1M-teacher-forced"]
    out = tmp_path / "out"
    arguments = ["--checkpoint", str(checkpoint), "--data-root", str(root), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--tasks", ",".join(names), "--max_num", "2"]) == 0
    results = [json.loads((out / name / "scores.json").read_text()) for name in names]
    rows = results[0]["results"]["official"]["by_length"]
    assert [(row["low"], row["count"]) for row in rows if row["count"]] == [(512_000, 2)]
    lines = [(out / name / "predictions.jsonl").read_text().splitlines() for name in names]
    assert all(len(json.loads(line)["response"]) <= 20 for line in lines[1])
    summary = json.loads((out / "summary.json").read_text())["groups"]["mm_niah_long"]
    assert set(summary) == {"generated", "teacher_forced"}
