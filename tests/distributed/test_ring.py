"""Ring attention over gloo against float64 attention on the whole row: outputs, dq, dk and dv."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.train.tiny_run import clean_environment, tail
from tests.warm_python import warm_python

WORKER = Path(__file__).with_name("ring_worker.py")
SIZES = (2, 3, 4, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """SIZE.json holds the errors of every case in a world of that size."""
    path = tmp_path_factory.mktemp("ring")
    command = [warm_python(), str(WORKER), str(path), *map(str, SIZES)]
    result = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, tail(result)
    return path


@pytest.fixture(params=SIZES)
def results(request, folder) -> dict[str, dict[str, float]]:
    return json.loads((folder / f"{request.param}.json").read_text())


def select(results, *dtypes: str) -> dict[str, dict[str, float]]:
    chosen = {name: numbers for name, numbers in results.items() if name.rpartition(", ")[2] in dtypes}
    assert chosen
    return chosen


def test_float32_and_float64_are_exact(results):
    """Scores of some thousands lose digits in any kernel, see below."""
    results = {name: numbers for name, numbers in results.items() if "large scores" not in name}
    assert {n: e for n, e in select(results, "float32").items() if not e["error"] < 1e-5} == {}
    assert {n: e for n, e in select(results, "float64").items() if not e["error"] < 1e-13} == {}


def test_half_precision_is_as_good_as_on_one_process(results):
    """The kernels of two ranks round the gradients of a key that both read: two roundings in the worst number."""
    cases = select(results, "bfloat16", "float16")
    assert {name: e for name, e in cases.items() if not e["mean_ratio"] < 1.25} == {}
    assert {name: e for name, e in cases.items() if not (e["error"] < 2 * e["alone"] and e["alone"] < 0.013)} == {}


def test_large_scores_neither_overflow_nor_lose_more_than_on_one_process(results):
    cases = {name: e for name, e in results.items() if "large scores" in name}
    assert {name: e for name, e in cases.items() if not e["error"] < 1.5 * e["alone"] < 1e-3} == {}


def test_padding_gets_neither_output_nor_gradient(results):
    assert {name: e for name, e in results.items() if e["padding"] != 0} == {}
