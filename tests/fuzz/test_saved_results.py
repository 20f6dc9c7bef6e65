"""Damaged results of an evaluation: score, report, compare and the study end with numbers or with one line."""

import copy
import io
import json
import random
import re
import shutil
import sys

import pytest

from eval.report.__main__ import main as report
from eval.report.compare import main as compare
from eval.score import main as score
from studies.miniature.__main__ import main as study
from studies.miniature.cells import QUESTIONS, Cell, write_study
from tests.eval.conftest import Benchmark, SavedRuns, make_record
from tests.fuzz.mutations import list_damaged

TASK = "mm_niah/retrieval-text-test"
# `@` marks what stands in the file as it is, since Python does not write it.
NUMBERS = (True, -1, 0, 0.5, 2**80, 10**400, 1e308, float("nan"), float("inf"), "@1e999", f"@{'9' * 5000}")
ODD_VALUES = (*NUMBERS, None, "", "=x", "$x", "\ud83d", "\0", [], {}, [[]], {"a": []})
ODD_NAMES = ("", "$x", "\ud83d", "official")


def report_and_compare(run):
    yield report, [str(run), "--out", str(run / "page.html"), "--samples", "2"]
    yield compare, [str(run / "page.json"), "--baseline", "V2PE stride 64"]


def read_run(run):
    yield from report_and_compare(run)
    yield score, [str(run)]


def compare_only(run):
    yield compare, [str(run / "page.json"), "--baseline", "V2PE stride 64"]


def use_study(run):
    yield study, ["tables", str(run / "study.json")]
    yield study, ["page", str(run / "study.json"), "--out", str(run / "study.html")]


# What is damaged -> the commands that read it.
FILES = {
    f"{TASK}/settings.json": read_run,
    f"{TASK}/predictions.jsonl": read_run,
    f"{TASK}/scores.json": report_and_compare,
    "page.json": compare_only,
    "study.json": use_study,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs of one task of six answers, their scores and report, and the file of a study."""
    folder = tmp_path_factory.mktemp("finished")
    benchmark = Benchmark(folder / "benchmark")
    benchmark.write("retrieval-text", [make_record(index) for index in range(6)])
    run = folder / "run"
    SavedRuns().write(run, TASK, ["blue", "red", "", "blue", "x", "blue"], data_root=benchmark.root)
    SavedRuns().write(run / "other", TASK, ["blue"] * 6, data_root=benchmark.root, stride=16)
    assert score([str(run)]) == 0
    assert report([str(run), "--out", str(run / "page.html")]) == 0
    depths = ((0.0, 10.0, 0, 0, 0), (0, 20, 0, 0, 0))
    cells = [
        Cell(seed, method, "stride_1-16", question, 16, 0.5, 20, *depths)
        for seed in (0, 1)
        for method in ("default", "rnd_image")
        for question in QUESTIONS.values()
    ]
    write_study(run / "study.json", cells)
    return run


def change_values(text, rng):
    """One to three values of one line's JSON replaced by odd ones, removed, or renamed."""
    lines = text.splitlines() if text.startswith('{"id"') else [text]
    place = rng.randrange(len(lines))
    content = json.loads(lines[place])
    for _ in range(rng.randint(1, 3)):
        holder = content
        while isinstance(holder, dict | list) and holder:
            key = rng.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
            if rng.random() < 0.5 and isinstance(holder[key], dict | list) and holder[key]:
                holder = holder[key]
                continue
            change = rng.random()
            if change < 0.15:
                del holder[key]
            elif change < 0.25 and isinstance(holder, dict):
                holder[rng.choice(ODD_NAMES)] = holder.pop(key)
            else:
                holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
            break
    lines[place] = re.sub(r'"@([^"]*)"', r"\1", json.dumps(content))
    return "\n".join(lines) + "\n"


def list_changed(content, count):
    rng = random.Random(3)
    for number, damaged in enumerate(list_damaged(content, seed=3, count=count)):
        yield damaged if number % 2 else change_values(content.decode(), rng).encode()


@pytest.mark.parametrize("count", [5, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_damaged_results_are_numbers_or_errors(finished, tmp_path, name, count, monkeypatch):
    for number, content in enumerate(list_changed((finished / name).read_bytes(), count)):
        run = tmp_path / str(number)
        shutil.copytree(finished, run)
        (run / name).write_bytes(content)
        # What is no defect of the program ends with 0 or 2; anything else raises here.
        said = io.StringIO()  # takes half characters, as standard error does outside of tests
        monkeypatch.setattr(sys, "stderr", said)
        codes = [command(arguments) for command, arguments in FILES[name](run)]
        assert set(codes) <= {0, 2}, number
        errors = said.getvalue()
        assert errors.count("error: ") == codes.count(2), errors
        shutil.rmtree(run)
