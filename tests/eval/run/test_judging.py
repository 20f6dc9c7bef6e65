"""Judges: what is asked, kept and written, and that a task without its judge has no score instead of another one."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from eval import score
from eval.core.judge import JudgeRule, write_prompts
from eval.core.sample import Prediction, Sample
from eval.core.task import Task, TaskFamily
from eval.report.__main__ import main as report
from eval.run import chat_server
from eval.run.__main__ import main as run
from eval.tasks import registry
from internvl.errors import EvalError
from tests.eval.run.chat_server_double import Server, answer

NAMES = ["a", "b", "c", "d", "e", "f"]


def read_verdict(reply, gold):
    match = re.search(r"score: (\d)", reply)
    if match is None:
        raise ValueError("no score")
    return (int(match[1]) - 1) / 4


RULE = JudgeRule(
    name="essay",
    version=3,
    write_prompt=lambda entry: f"{entry.metadata['question']} | {entry.answer} | {entry.response}",
    read_verdict=read_verdict,
    system="You grade.",
    by_rule=lambda gold, response: float(gold == response),
)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """`essays/test`: six questions whose answers a judge scores."""
    task = Task(
        name="essays/test",
        version=1,
        source="here",
        annotation=Path("essays.jsonl"),
        read_samples=lambda root: [Sample(n, f"Tell {n}", (), f"gold {n}", {"question": f"Tell {n}"}) for n in NAMES],
        max_new_tokens=8,
        max_num=1,
        score_answer=lambda gold, response, protocol: pytest.fail("a judged answer is not scored by a rule"),
        aggregate=lambda scored, edges: {"best": max(item.score for item in scored)},
        judge=RULE,
    )
    monkeypatch.setitem(registry.GROUPS, "essays", ("essays",))
    monkeypatch.setattr(registry, "_load_family", lambda module: TaskFamily(("test",), lambda name, prompts: task))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "essays.jsonl").write_text("{}\n")
    return task


@pytest.fixture
def model(task, monkeypatch):
    monkeypatch.setattr(chat_server, "FIRST_PAUSE_S", 0.0)
    server = Server()
    server.behave = lambda body, number: (
        200,
        answer(body["messages"][0]["content"][-1]["text"].replace("Tell", "gold")),
    )
    yield server
    server.close()


@pytest.fixture
def judge(task, monkeypatch):
    """Gives `a` 5 points of 5, and 3 to the others."""
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    server = Server(model="wise")
    server.behave = lambda body, number: (200, answer("score: 5" if "Tell a" in read(body) else "score: 3"))
    yield server
    server.close()


def read(body):
    return body["messages"][-1]["content"]


@pytest.fixture
def evaluate(model, tmp_path):
    def evaluate(*words):
        return run(
            ["--endpoint", model.url, "--model", "tiny", "--tasks", "essays", "--data_root", str(tmp_path / "data"),
             "--out", str(tmp_path / "out"), *words]
        )  # fmt: skip

    return evaluate


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out/essays/test"


def by(judge):
    return ["--judge", judge.url, "--judge_model", "wise"]


def read_scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_without_a_judge_answers_are_saved_and_there_is_no_score(evaluate, folder, tmp_path, caplog, capsys):
    assert evaluate() == 0
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 6
    numbers = read_scores(folder)["results"]["official"]
    assert (numbers["score"], numbers["stderr"], numbers["count"]) == (None, None, 6)
    assert numbers["needs_judge"] == "essay"
    assert numbers["by_rule"]["score"] == 1.0  # named as what it is
    assert "best" not in numbers
    assert read_scores(folder)["judge"]["model"] is None
    assert f"pass --judge URL --judge_model NAME to python -m eval.score {folder}" in caplog.text
    assert "needs a judge (n 6)" in capsys.readouterr().out
    assert report([str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    assert "needs a judge" in (tmp_path / "page.html").read_text()
    assert json.loads((tmp_path / "out/summary.json").read_text())["tasks"][0]["needs_judge"] == "essay"


def test_verdicts_are_the_score(evaluate, judge, folder, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "judge-key")
    assert evaluate(*by(judge)) == 0
    content = read_scores(folder)
    numbers = content["results"]["official"]
    assert numbers["score"] == pytest.approx((1 + 5 * 0.5) / 6)
    assert (numbers["best"], "needs_judge" in numbers, "floors" in numbers) == (1.0, False, False)
    assert content["judge"] == {
        "rule": "essay", "version": 3, "model": "wise", "num_judged": 6, "num_unreadable": 0, "again": None,
        "people": None,
    }  # fmt: skip
    body = next(body for body in judge.requests if "Tell b" in read(body))
    assert body["messages"] == [
        {"role": "system", "content": "You grade."},
        {"role": "user", "content": "Tell b | gold b | gold b"},
    ]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("wise", 0.0, 512)
    assert {headers["Authorization"] for headers in judge.headers} == {"Bearer judge-key"}
    assert "judge-key" not in (folder / "judge.jsonl").read_text()


def test_a_killed_scoring_asks_only_what_is_open(evaluate, judge, folder, monkeypatch, capsys):
    assert evaluate() == 0
    monkeypatch.setattr(chat_server, "NUM_TRIES", 1)
    judge.behave = lambda body, number: (200, answer("score: 3")) if number <= 4 else (503, b"down")
    assert score.main([str(folder), *by(judge), "--judge_requests", "1"]) == 2
    assert "start the same command again" in capsys.readouterr().err
    with (folder / "judge.jsonl").open("a") as file:
        file.write('{"key": "ab')  # what a killed process leaves
    judge.requests.clear()
    judge.behave = lambda body, number: (200, answer("score: 3"))
    assert score.main([str(folder), *by(judge)]) == 0
    assert len(judge.requests) == 2
    assert score.main([str(folder), *by(judge)]) == 0
    assert len(judge.requests) == 2
    assert read_scores(folder)["results"]["official"]["score"] == 0.5


def test_replies_that_come_after_the_judge_is_gone_are_saved(evaluate, judge, folder, monkeypatch):
    assert evaluate() == 0
    monkeypatch.setattr(chat_server, "NUM_TRIES", 1)

    def behave(body, number):
        if "Tell a" in read(body):
            return 503, b"down"
        time.sleep(0.3)
        return 200, answer("score: 3")

    judge.behave = behave
    assert score.main([str(folder), *by(judge), "--judge_requests", "6"]) == 2
    assert len((folder / "judge.jsonl").read_text().splitlines()) == 5


def test_saved_verdicts_are_used_without_a_server(evaluate, judge, folder, tmp_path):
    assert evaluate(*by(judge)) == 0
    before = read_scores(folder)
    judge.requests.clear()
    assert score.main([str(folder)]) == 0
    assert read_scores(folder) == before
    assert report([str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "0.50" in page
    assert "judge: model" in page
    assert judge.requests == []


def test_another_judge_or_prompt_is_asked_again(evaluate, judge, folder, task):
    assert evaluate(*by(judge)) == 0
    judge.requests.clear()
    object.__setattr__(task, "judge", replace(RULE, version=4))
    assert score.main([str(folder), *by(judge)]) == 0
    assert len(judge.requests) == 6


def test_a_reply_without_a_verdict_scores_nothing_and_is_counted(evaluate, judge, folder, caplog):
    def behave(body, number):
        if "Tell b" in read(body):
            return 200, answer("I cannot say.")
        if "Tell c" in read(body):
            return 400, {"error": {"message": "content filter"}}
        return 200, answer("score: 5")

    judge.behave = behave
    assert evaluate(*by(judge)) == 0
    content = read_scores(folder)
    assert content["results"]["official"]["score"] == pytest.approx(4 / 6)
    assert content["judge"]["num_unreadable"] == 2
    assert "2 replies of the judge have no verdict and score 0" in caplog.text
    judge.requests.clear()
    judge.behave = lambda body, number: (200, answer("score: 5"))
    assert score.main([str(folder), *by(judge)]) == 0
    assert [read(body)[:6] for body in judge.requests] == ["Tell c"]  # a refusal is no reply
    assert read_scores(folder)["judge"]["num_unreadable"] == 1


def test_failed_answers_are_wrong_and_not_judged(evaluate, model, judge, folder):
    model.behave = lambda body, number: (400, b"no") if "Tell d" in str(body) else (200, answer("x"))
    judge.behave = lambda body, number: (200, answer("score: 5"))
    assert evaluate(*by(judge)) == 0
    assert len(judge.requests) == 5
    assert read_scores(folder)["results"]["official"]["score"] == pytest.approx(5 / 6)


def test_a_judge_that_changes_its_mind_shows(evaluate, judge, folder):
    judge.behave = lambda body, number: (
        200, answer("score: 5" if body["seed"] == 0 or "Tell a" in read(body) else "score: 1")
    )  # fmt: skip
    assert evaluate(*by(judge), "--judge_again", "100") == 0
    again = read_scores(folder)["judge"]["again"]
    assert (again["count"], again["agreement"]) == (6, pytest.approx(1 / 6))
    assert again["agreement_interval"][0] < 1 / 6 < again["agreement_interval"][1]
    assert len(judge.requests) == 12
    assert score.main([str(folder), *by(judge), "--judge_again", "3"]) == 0
    assert len(judge.requests) == 12


def test_verdicts_of_people_are_compared(evaluate, judge, folder, tmp_path):
    people = [{"id": name, "score": score} for name, score in zip("abcd", (1, 0.5, 0.5, 0), strict=True)]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(line) + "\n" for line in people))
    assert evaluate(*by(judge), "--judge_check", str(tmp_path / "people.jsonl")) == 0
    found = read_scores(folder)["judge"]["people"]
    chance = (1 * 1 + 3 * 2) / 16
    assert (found["count"], found["agreement"]) == (4, 0.75)
    assert found["kappa"] == pytest.approx((0.75 - chance) / (1 - chance))
    assert found["kappa_interval"][0] < found["kappa"] < found["kappa_interval"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge", "http://127.0.0.1:1"], "--judge and --judge_model belong together"),
        (["--judge", "http://127.0.0.1:1", "--judge_model", "x"], "--judge http://127.0.0.1:1: no server answers"),
        (["--judge_again", "5"], "--judge_again asks the judge"),
        (["--judge_check", "people.jsonl"], "people.jsonl, row 1: the score is 5"),
        (["--judge_check", "none.jsonl"], "cannot be read"),
    ],
)
def test_what_cannot_work_is_said_before_a_question_is_asked(
    evaluate, model, words, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("people.jsonl").write_text('{"id": 1, "score": 1}\n{"id": 2, "score": 5}\n')
    assert evaluate(*words) == 2
    assert message in capsys.readouterr().err
    assert model.requests == []


def test_verdicts_about_other_answers_are_refused(evaluate, judge, tmp_path, capsys):
    (tmp_path / "people.jsonl").write_text('{"id": "z", "score": 1}\n')
    assert evaluate(*by(judge), "--judge_check", str(tmp_path / "people.jsonl")) == 2
    assert "no verdict is about an answer of essays/test, such as 'a'" in capsys.readouterr().err


def test_a_broken_reply_file_is_named(evaluate, judge, folder, capsys):
    assert evaluate(*by(judge)) == 0
    path = folder / "judge.jsonl"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": "x"', 1))
    assert score.main([str(folder)]) == 2
    assert re.search(r"judge\.jsonl line \d is broken .*'seed'", capsys.readouterr().err)


def test_a_prediction_without_its_question_is_named():
    broken = Prediction("a", "yes", "gold", {}, 1, 1, 0.0, 0.0)
    with pytest.raises(EvalError, match=r"sample 'a' cannot be judged .*'question'.* answer it again"):
        write_prompts(RULE, [broken])
    assert write_prompts(RULE, [replace(broken, failure="no picture")]) == {}
