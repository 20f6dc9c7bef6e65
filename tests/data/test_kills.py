"""Data alone, 200 steps, killed three times: the same batches as without, with any number of workers."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from internvl.data.cursor import merge_states
from internvl.data.loader import build_train_loader
from internvl.data.packing import PackingLimits
from internvl.data.plan import RowOptions

NUM_STEPS = 200
KILLS = (37, 90, 161)  # steps


def hash_batch(batch) -> str:
    digest = hashlib.sha256()
    for name in sorted(batch):
        digest.update(name.encode() + batch[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def run_steps(loader, log: Path, state_path: Path) -> None:
    """Continue from the saved state to the last step; save after every step, as a checkpoint does."""
    first = 0
    if state_path.is_file():
        saved = json.loads(state_path.read_text())
        first = saved["step"]
        loader.load_state_dict(merge_states([saved["data"]]))
    batches = iter(loader)
    with log.open("a") as lines:
        for step in range(first, NUM_STEPS):
            lines.write(f"{step} {hash_batch(next(batches))}\n")
            lines.flush()
            half = state_path.with_suffix(".half")
            half.write_text(json.dumps({"step": step + 1, "data": loader.state_dict()}))
            half.replace(state_path)


def read_log(path: Path) -> dict[int, str]:
    """Hash of every step; a step that was done twice has to have the same one both times."""
    hashes: dict[int, str] = {}
    for line in path.read_text().splitlines():
        step, digest = line.split()
        assert hashes.setdefault(int(step), digest) == digest
    return hashes


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["greedy", "balanced"])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_run_that_is_killed_three_times_trains_on_the_same_batches(
    make_encoder, make_source, make_image, tmp_path, num_workers, policy
):
    names = [make_image(f"{width}.png", width, 30, seed=width).name for width in (30, 60)]
    lines = []
    for row in range(150):
        images = names[: row % 3]
        question = f"{'<image>' * len(images)} number {row} {'word ' * (row % 7)}"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "yes"}]
        lines.append({"conversations": turns, "image": images})
    spec = make_source("a", lines, data_augment=True)

    def make_loader(workers: int):
        limits = PackingLimits(max_tokens=500, max_tiles=12, max_open_rows=3)
        encoder = make_encoder(rope_pos_id_version="v2pe_rnd")
        options = RowOptions(num_streams=2, packing=limits, packing_policy=policy)
        return build_train_loader([spec], encoder, options, num_workers=workers)

    expected = [hash_batch(batch) for batch, _ in zip(make_loader(0), range(NUM_STEPS), strict=False)]
    log, state = tmp_path / "log", tmp_path / "state.json"
    log.touch()
    for kill in (*KILLS, None):
        child = os.fork()
        if child == 0:
            os.setsid()
            run_steps(make_loader(num_workers), log, state)
            os._exit(0)
        while kill is not None and len(log.read_text().splitlines()) <= kill:
            time.sleep(0.005)
        if kill is not None:
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert (kill is None) == (status == 0)
    hashes = read_log(log)
    assert [hashes[step] for step in range(NUM_STEPS)] == expected
    assert len(set(expected)) == NUM_STEPS
