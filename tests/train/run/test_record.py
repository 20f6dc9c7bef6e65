import hashlib
import json
import logging
import subprocess
from argparse import Namespace

import pytest

from internvl.atomic import write_json
from internvl.data.meta import load_meta
from internvl.parallel.launch import RankEnv
from internvl.train.arguments import DataTrainingArguments, ModelArguments
from internvl.train.run import record as run_record
from internvl.train.run.counts import SOURCE_COUNTS, Counts
from internvl.train.run.record import (
    RunSummary,
    compare_data,
    describe_run,
    fingerprint_data,
    read_code_state,
    warn_of_changed_data,
)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"{name}": 1}}\n' * 5)
    write_meta(tmp_path, a={}, b={})
    return tmp_path


def write_meta(folder, **sources):
    entries = {name: {"annotation": f"{name}.jsonl", **options} for name, options in sources.items()}
    (folder / "meta.json").write_text(json.dumps(entries))


def fingerprint(folder):
    return fingerprint_data(folder / "meta.json", load_meta(folder / "meta.json", data_root=folder))


def test_the_fingerprint_is_of_contents(folder):
    data = fingerprint(folder)
    assert data["meta"] == hashlib.sha256((folder / "meta.json").read_bytes()).hexdigest()
    assert data["sources"]["a"]["annotation_sha256"] == hashlib.sha256((folder / "a.jsonl").read_bytes()).hexdigest()
    assert data["sources"]["a"]["annotation_bytes"] == len((folder / "a.jsonl").read_bytes())
    (folder / "a.jsonl").touch()
    assert compare_data(data, fingerprint(folder)) == []


def test_a_changed_record_of_the_same_length_is_seen(folder):
    before = fingerprint(folder)
    (folder / "b.jsonl").write_text('{"b": 2}\n' * 5)
    (change,) = compare_data(before, fingerprint(folder))
    assert change.startswith("data set 'b': the annotation file ")
    assert "b.jsonl has other content" in change


def test_large_files_are_compared_by_size_and_time(folder, monkeypatch):
    monkeypatch.setattr(run_record, "_HASHED_BYTES", 10)
    before = fingerprint(folder)
    assert "annotation_sha256" not in before["sources"]["a"]
    assert compare_data(before, fingerprint(folder)) == []
    (folder / "a.jsonl").write_text('{"a": 1}\n' * 6)
    (change,) = compare_data(before, fingerprint(folder))
    assert "'a'" in change


def test_new_and_missing_data_sets_and_options_are_named(folder):
    before = fingerprint(folder)
    (folder / "c.jsonl").write_text("{}\n")
    write_meta(folder, b={"repeat_time": 2}, c={})
    assert compare_data(before, fingerprint(folder)) == [
        "data set 'c' is new",
        "data set 'a' is gone",
        "data set 'b': repeat_time was 1.0, is 2.0",
    ]


def test_data_may_move(folder, tmp_path_factory):
    before = fingerprint(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in folder.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    assert compare_data(before, fingerprint(elsewhere)) == []


def test_a_later_start_is_told_what_changed(folder, caplog):
    write_json(folder / "run.json", {"data": fingerprint(folder)})
    with caplog.at_level(logging.WARNING):
        assert warn_of_changed_data(folder, fingerprint(folder)) == []
        assert caplog.messages == []
        (folder / "a.jsonl").write_text("{}\n")
        warn_of_changed_data(folder, fingerprint(folder))
    assert "the data is not what this run was started with: data set 'a'" in caplog.text


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_missing_or_damaged_record_warns_of_nothing(folder, content):
    if content is not None:
        (folder / "run.json").write_text(content)
    assert warn_of_changed_data(folder, fingerprint(folder)) == []


def test_a_run_is_described_completely(folder):
    arguments = {
        "model": ModelArguments(model_name_or_path="pretrained/x"),
        "data": DataTrainingArguments(meta_path=str(folder / "meta.json")),
        "training": Namespace(learning_rate=1e-5, output_dir="out", hub_token="secret"),
    }
    env = RankEnv(0, 0, 4, 2, "slurm")
    run = describe_run(arguments, env=env, data=fingerprint(folder), device="cpu", attempt=3)
    write_json(folder / "run.json", run)
    run = json.loads((folder / "run.json").read_text())
    assert (run["world_size"], run["launcher"], run["attempt"], run["device"]) == (4, "slurm", 3, "cpu")
    assert run["arguments"]["training"] == {"learning_rate": 1e-5, "output_dir": "out", "hub_token": "given"}
    assert run["arguments"]["model"]["freeze_llm"] is False
    assert run["model_path"] == run["tokenizer_path"]
    assert run["model_path"].endswith("/pretrained/x")
    assert {"python", "v2pe", "torch", "transformers", "deepspeed", "peft"} <= run["versions"].keys()
    assert [path.name for path in folder.glob(".*")] == []


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_code_differs_from_it(tmp_path):
    assert read_code_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "log").write_text("x")
    assert read_code_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "code.py").write_text("2\n")
    assert read_code_state(tmp_path) == {"commit": commit, "dirty": True}


def test_a_summary_by_hand():
    sources = {"a": dict(zip(SOURCE_COUNTS, (6, 700, 200, 40.0, 60.0), strict=True))}
    numbers = {"rows": 4, "samples": 6, "tokens": 700, "targets": 200, "tiles": 10, "pairs": 9, "sources": sources}
    summary = RunSummary(
        status="finished",
        steps=30,
        bad_steps=2,
        skipped_documents=1,
        counts=Counts.from_json(numbers, ("a", "b")),
        seconds=70.0,
        steps_this_start=10,
        seconds_this_start=20.0,
        peak_memory_bytes=3 * 2**30,
        final_loss=1.25,
        model="/out",
    )
    content = summary.to_json()
    assert content["tokens_per_second"] == 10.0
    assert content["sources"] == sources
    assert (content["steps"], content["bad_steps"], content["final_loss"]) == (30, 2, 1.25)
    text = "\n".join(summary.describe())
    for words in ("finished at step 30 (10 in this start, 0:20; 1:10 in all)", "6 samples, 700 tokens, 10 tiles",
                  "10.0 tokens/s; 1 documents skipped, 2 steps left out", "a: 6 samples, 700 tokens, mean loss 1.5000",
                  "peak memory 3.00 GiB per process; last loss 1.2500", "model: /out"):  # fmt: skip
        assert words in text
