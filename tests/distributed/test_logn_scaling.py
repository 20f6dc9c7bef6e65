"""Log-n scaling of a row that ranks share counts the keys of the whole document, not those of a rank."""

import json
from pathlib import Path

import pytest

from tests.train.tiny_run import launch, tail

WORKER = Path(__file__).with_name("logn_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    output = tmp_path_factory.mktemp("logn") / "found.json"
    result = launch(WORKER, [str(output)], num_processes=2)
    assert result.returncode == 0, tail(result)
    return json.loads(output.read_text())


@pytest.mark.parametrize("kind", ["shared row", "answer"])
def test_ranks_together_equal_one_process(found, kind):
    for rank in found:
        cases = {case: numbers for case, numbers in rank.items() if case.startswith(kind)}
        assert {case: numbers for case, numbers in cases.items() if not numbers["error"] < 1e-4} == {}
        assert {case: numbers for case, numbers in cases.items() if numbers["effect"] < 1e-3} == {}, "nothing to see"
