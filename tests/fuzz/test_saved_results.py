"""Damaged results of an evaluation: score, report and compare end with numbers or with one line."""

import copy
import json
import random
import shutil

import pytest

from eval.report.__main__ import main as report
from eval.report.compare import main as compare
from eval.score import main as score
from tests.eval.conftest import Benchmark, SavedRuns, make_record
from tests.fuzz.mutations import list_damaged

TASK = "mm_niah/retrieval-text-test"
FILES = ("settings.json", "predictions.jsonl")
ODD_VALUES = (None, True, -1, 0, 2**80, 1e308, float("nan"), float("inf"), "", "=x", "\ud83d", [], {}, [[]], {"a": []})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A result folder with one task of six answers and its scores."""
    folder = tmp_path_factory.mktemp("finished")
    benchmark = Benchmark(folder / "benchmark")
    benchmark.write("retrieval-text", [make_record(index) for index in range(6)])
    SavedRuns().write(folder / "run", TASK, ["blue", "red", "", "blue", "x", "blue"], data_root=benchmark.root)
    assert score([str(folder / "run")]) == 0
    return folder / "run"


def change_values(text, rng):
    """One to three values of one line's JSON replaced by odd ones, or removed."""
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
            if rng.random() < 0.2:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
            break
    lines[place] = json.dumps(content)
    return "\n".join(lines) + "\n"


def list_changed(content, count):
    rng = random.Random(3)
    for number, damaged in enumerate(list_damaged(content, seed=3, count=count)):
        yield damaged if number % 2 else change_values(content.decode(), rng).encode()


@pytest.mark.parametrize("count", [10, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_damaged_results_are_scored_or_refused(finished, tmp_path, name, count, capsys):
    for number, content in enumerate(list_changed((finished / TASK / name).read_bytes(), count)):
        run = tmp_path / str(number)
        shutil.copytree(finished, run)
        (run / TASK / name).write_bytes(content)
        page = ["--out", str(run / "page.html"), "--samples", "2"]
        # What is no defect of the program ends with 0 or 2; anything else raises here.
        codes = [report([str(run), *page]), compare([str(run / "page.json")]), score([str(run)])]
        assert set(codes) <= {0, 2}, number
        errors = capsys.readouterr().err
        assert errors.count("error: ") == codes.count(2), errors
        shutil.rmtree(run)
