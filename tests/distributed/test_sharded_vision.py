"""Tiles encoded by the rank they belong to, features sent to the rank that needs them, over gloo, four processes."""

import json
from pathlib import Path

import pytest

from tests.train.tiny_run import launch, tail

WORKER = Path(__file__).with_name("sharded_vision_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("vision") / "errors.json"
    result = launch(WORKER, [str(output)], num_processes=4)
    assert output.exists(), tail(result)
    assert result.returncode == 0, tail(result)
    return json.loads(output.read_text())


def test_loss_and_gradients_equal_those_of_the_whole_row(results):
    cases = results["cases"]
    assert len(cases) == 48
    assert {case: numbers["error"] for case, numbers in cases.items() if not numbers["error"] < 1e-4} == {}


def test_a_rank_gets_the_features_of_its_own_visual_tokens_only(results):
    assert {case for case, numbers in results["cases"].items() if numbers["not its own"]} == set()


def test_rows_cover_ranks_without_tiles_and_without_visual_tokens(results):
    """So that the gradients above are those of ranks that had to take part with nothing of their own."""
    cases = {case: numbers for case, numbers in results["cases"].items() if "no image" not in case}
    assert any(numbers["without tiles"] for numbers in cases.values())
    assert any(numbers["without visual tokens"] for numbers in cases.values())


def test_a_missing_tile_is_an_error_on_every_rank(results):
    assert len(results["refusals"]) == 4
    for messages in results["refusals"]:
        assert len(messages) == 3
        assert all("the text has 20 visual tokens but the images give 16 features" in text for text in messages)
