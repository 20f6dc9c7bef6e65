"""Benchmarks of long documents through the user's command: every task with the tiny model, killed and continued."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from eval.check_data import main as check_data
from eval.core.sample import Prediction
from eval.run.__main__ import main
from eval.tasks.registry import select_tasks
from tests.eval.published_documents import write_documents
from tests.warm_python import warm_python

ROOT = Path(__file__).parents[3]
# What `--tasks` names -> number of tasks.
RUNS = {"mmlongbench/*-8k": 19, "mmlongbench_doc,longdocurl,slidevqa,dude": 7}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("documents")
    write_documents(root)
    return root


def command(checkpoint, root, tasks, out):
    return [
        "--checkpoint", str(checkpoint), "--tasks", tasks, "--data-root", str(root), "--out", str(out),
        "--device", "cpu", "--max_num", "2", "--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1/4",
    ]  # fmt: skip


class Instant:
    """Answers at once, in place of the model, until it has given `most` answers: then it is as if it was killed."""

    def __init__(self, most=None):
        self.num, self.most = 0, most

    def __call__(self, task, samples):
        self.num += len(samples)
        if self.most is not None and self.num > self.most:
            raise SystemExit(9)
        return [Prediction(s.id, f"Answer: {s.id}", s.answer, s.metadata, 9, len(s.images), 8.0, 0.1) for s in samples]


def run(monkeypatch, arguments, answerer):
    monkeypatch.setattr("eval.run.__main__.load_answerer", lambda *_, **__: answerer)
    monkeypatch.setattr("eval.run.__main__.write_task_plots", lambda *_: None)  # most of the time, and tested elsewhere
    return main(arguments)


@pytest.mark.parametrize(("tasks", "num_tasks"), RUNS.items())
def test_every_task_runs_to_a_score_and_continues_where_a_run_ended(
    checkpoint, published, tmp_path, capsys, monkeypatch, tasks, num_tasks
):
    assert check_data([tasks, "--data-root", str(published), "--open"]) == 0
    assert f"{num_tasks} of {num_tasks} tasks are complete" in capsys.readouterr().out
    whole, broken = (command(checkpoint, published, tasks, tmp_path / name) for name in ("whole", "broken"))
    assert run(monkeypatch, whole, Instant()) == 0
    with pytest.raises(SystemExit):
        run(monkeypatch, broken, Instant(4))
    (part,) = [path for path in tmp_path.glob("broken/*/*/parts/*.jsonl") if path.stat().st_size][:1]
    part.write_bytes(part.read_bytes()[:-5])  # killed in the middle of a line
    rest = Instant()
    assert run(monkeypatch, broken, rest) == 0
    answers = read_answers(tmp_path / "whole")
    assert read_answers(tmp_path / "broken") == answers != []
    assert rest.num == len(answers) - 3
    for task in select_tasks(tasks):
        numbers, again = (read_numbers(tmp_path / name, task) for name in ("whole", "broken"))
        assert numbers == again, task.name
        assert numbers["count"] >= 3, task.name
        assert numbers["num_failed"] == 0, task.name


def read_numbers(out, task):
    return json.loads((out / task.name / "scores.json").read_text())["results"]["official"]


def read_answers(out):
    lines = [json.loads(line) for path in out.rglob("predictions.jsonl") for line in path.read_text().splitlines()]
    return sorted((line["id"], line["response"], line["last_position"]) for line in lines)


def start(arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = [warm_python(), "-m", "eval.run", *arguments]
    return subprocess.Popen(process, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow  # the model answers a question of every task, twice, with up to 384 tokens
@pytest.mark.parametrize("tasks", RUNS)
def test_a_killed_run_of_the_model_continues(checkpoint, published, tmp_path, tasks):
    whole, broken = ([*command(checkpoint, published, tasks, tmp_path / name), "--limit", "1"] for name in "wb")
    assert main(whole) == 0
    killed = start(broken)
    while killed.poll() is None and not any(path.stat().st_size for path in tmp_path.glob("b/*/*/parts/*.jsonl")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert main(broken) == 0
    assert read_answers(tmp_path / "b") == read_answers(tmp_path / "w") != []
    assert all(read_numbers(tmp_path / "b", task)["num_failed"] == 0 for task in select_tasks(tasks))
