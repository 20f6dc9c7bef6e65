"""All-to-all over heads, alone and around a ring, over gloo, against float64 attention on the whole row."""

import json
from pathlib import Path

import pytest

from tests.train.tiny_run import launch, tail

WORKER = Path(__file__).with_name("ulysses_worker.py")
# World size -> (chunk_num, ulysses_degree). Where chunk_num is smaller than the world, groups hold different rows.
GRIDS = {4: [(2, 2), (4, 4), (4, 2)], 6: [(3, 3), (6, 3), (6, 2)]}


@pytest.fixture(scope="module", params=GRIDS)
def results(request, tmp_path_factory):
    """Errors of every case of a world."""
    output = tmp_path_factory.mktemp("ulysses") / "errors.json"
    result = launch(WORKER, [str(output), json.dumps(GRIDS[request.param])], num_processes=request.param)
    assert output.exists(), tail(result)
    assert result.returncode == 0, tail(result)
    return json.loads(output.read_text())


def test_outputs_and_gradients_are_exact_in_float32(results):
    errors = {case: numbers["error"] for case, numbers in results.items() if "float32" in case}
    assert len(errors) == 36
    assert {case: error for case, error in errors.items() if not error < 1e-5} == {}


def test_bfloat16_is_as_good_as_on_one_process(results):
    cases = {case: numbers for case, numbers in results.items() if "bfloat16" in case}
    assert len(cases) == 12
    assert {case: n for case, n in cases.items() if not n["mean_error"] < 1.5 * n["mean_error_alone"] < 0.01} == {}


def test_padding_is_zero(results):
    assert {case for case, numbers in results.items() if numbers["padding"] != 0} == set()
