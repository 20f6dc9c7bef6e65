"""Ranks that share rows train exactly what one process trains: real runs of the training entry."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.test_training import FAILING, Runs, zero_config
from tests.train.tiny_run import flags, launch, read_losses

STEPS = {"max_steps": 8, "adam_epsilon": 1e-4}  # eps: no division of rounding errors by their own size
TWO_ROWS = {"gradient_accumulation_steps": 2}  # a group of ranks alone takes both rows of a step, one by one


@pytest.fixture(scope="module")
def alone(checkpoint, meta, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("alone"), checkpoint, meta)
    runs.add("reference", **STEPS, **TWO_ROWS)
    runs.add("kept", **STEPS, **TWO_ROWS, attn_type="ring", grad_checkpoint=True, keep_attention=True)
    runs.start(num_processes=1)
    return runs


@pytest.fixture(scope="module")
def two(checkpoint, meta, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("two"), checkpoint, meta)
    ring = STEPS | TWO_ROWS | {"chunk_num": 2, "attn_type": "ring"}
    runs.add("ring", **ring)
    runs.add("ulysses", **STEPS, **TWO_ROWS, chunk_num=2, attn_type="ulysses")
    runs.add("options", **ring, vit_batch_size=1, mlp_tile_tokens=16, grad_checkpoint=True, keep_attention=True)
    runs.add("zero3", **ring, vit_batch_size=2, deepspeed=zero_config(runs.folder, 3))
    runs.start(num_processes=2)
    return runs


@pytest.fixture(scope="module")
def four(checkpoint, meta, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("four"), checkpoint, meta)
    runs.add("two groups", **STEPS, chunk_num=2)
    runs.add("ring of four", **STEPS, **TWO_ROWS, chunk_num=4)
    runs.add("hybrid", **STEPS, **TWO_ROWS, chunk_num=4, ulysses_degree=2)
    runs.start(num_processes=4)
    return runs


@pytest.mark.parametrize("name", ["ring", "ulysses", "options", "zero3"])
def test_two_ranks_that_share_rows_equal_one(alone, two, name):
    assert_same_training(two[name], alone["reference"])


@pytest.mark.slow  # two launches; ZeRO-3 is above, and ZeRO-2 with shared rows in test_training.py
@pytest.mark.parametrize("stage", [1, 2])
def test_further_engines_equal_one_process(alone, checkpoint, meta, tmp_path, stage):
    runs = Runs(tmp_path, checkpoint, meta)
    options = {"chunk_num": 2, "vit_batch_size": 2, "deepspeed": zero_config(tmp_path, stage)}
    runs.add("run", **STEPS, **TWO_ROWS, **options)
    runs.start(num_processes=2)
    assert_same_training(runs["run"], alone["reference"])


@pytest.mark.parametrize("name", ["two groups", "ring of four", "hybrid"])
def test_four_ranks_equal_one(alone, four, name):
    assert_same_training(four[name], alone["reference"])


def test_kept_attention_changes_nothing(alone):
    assert_same_training(alone["kept"], alone["reference"])


def test_a_shared_row_is_counted_once(alone, two):
    def totals(run: Path) -> list[tuple[float, float, float]]:
        history = json.loads((run / "trainer_state.json").read_text())["log_history"]
        return [(entry["targets"], entry["tiles"], entry["fill_rate"]) for entry in history if "targets" in entry]

    assert totals(two["ring"]) == totals(alone["reference"])


def assert_same_training(run: Path, reference: Path) -> None:
    losses, expected_losses = read_losses(run), read_losses(reference)
    assert len(losses) == STEPS["max_steps"]
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    weights, expected = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        error = (value - expected[key]).norm() / expected[key].norm().clamp(min=1e-6)
        assert error < 1e-4, f"{key}: relative error {error:.1e}"


def test_damaged_images_cost_their_documents_on_every_rank(checkpoint, meta, tmp_path):
    """The rank that loads a damaged image finds out; all take the document's labels out, and the run goes on."""
    folder = tmp_path / "data"
    shutil.copytree(meta.parent, folder)
    damaged = sorted((folder / "images").iterdir())[::4]
    for image in damaged:
        image.write_bytes(image.read_bytes()[:-100])
    runs = Runs(tmp_path, checkpoint, folder / meta.name)
    runs.add("run", max_steps=4, chunk_num=2, max_skipped=1.0)
    runs.start(num_processes=2)
    skipped = [json.loads(line) for line in (runs["run"] / "skipped.jsonl").read_text().splitlines()]
    assert skipped
    assert {entry["row"] for entry in skipped} <= {int(image.stem) for image in damaged}
    assert all("cannot be read" in entry["cause"] for entry in skipped)
    assert len(read_losses(runs["run"])) == 4


@pytest.mark.parametrize("fault", ["raises", "killed"])
def test_a_failed_rank_ends_a_group_that_shares_rows(checkpoint, meta, tmp_path, fault):
    argv = flags(checkpoint, meta, tmp_path / "out", max_steps=100000, chunk_num=2)
    start = time.monotonic()
    job = launch(FAILING, [fault, *argv], num_processes=2)
    marker = tmp_path / "out" / "failed_at"
    seconds = time.time() - float(marker.read_text())
    assert job.returncode not in (0, None)
    assert seconds < 60
    assert time.monotonic() - start < 170
    if fault == "raises":
        first = re.search(r"^\[rank\d\]: \w*Error: .*", job.stderr, re.MULTILINE)
        assert first is not None, job.stderr[-3000:]
        assert first.group(0) == "[rank1]: RuntimeError: this rank is broken"
        assert "this rank is broken" in job.stderr.rpartition("Root Cause")[2]
    else:
        assert "Signal 9" in job.stderr or "SIGKILL" in job.stderr
