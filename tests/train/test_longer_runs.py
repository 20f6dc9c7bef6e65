"""Finished runs that are started again with more steps or epochs go on, as a run of that length does."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.distributed.test_resume import LORA, WORKER, read_curve
from tests.distributed.test_training import zero_config
from tests.train.checkpoint.test_pickles import Poison, save_code
from tests.train.tiny_run import flags, launch, make_data, tail, train

STEPS, MORE_STEPS = 2, 4
PLAIN = {"use_packed_ds": False, "per_device_train_batch_size": 3, "max_seq_length": 256}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint) -> dict[str, Path]:
    """Folders of runs by kind; all were finished once, and then started again for longer, in one process each."""
    folder = tmp_path_factory.mktemp("longer")
    meta = make_data(folder / "data", num_records=6)  # two steps per epoch of three documents each
    kinds = {
        "lora": {**LORA, "vision_learning_rate": 1e-3},
        "zero2": {"deepspeed": zero_config(folder, 2)},
        "epochs": {"num_train_epochs": 1},
    }
    starts = []
    for kind, options in kinds.items():
        options = PLAIN | {"save_strategy": "steps", "save_steps": 1} | options
        first = {"max_steps": None} if kind == "epochs" else {"max_steps": STEPS}
        second = {"max_steps": None, "num_train_epochs": 2} if kind == "epochs" else {"max_steps": MORE_STEPS}
        for limit in (first, second):
            starts.append([flags(checkpoint, meta, folder / kind, **(options | limit)), []])
    (folder / "runs.json").write_text(json.dumps(starts))
    result = launch(WORKER, [str(folder / "runs.json")], num_processes=1)
    assert result.returncode == 0, tail(result)
    return {kind: folder / kind for kind in kinds}


COSINE = [5e-3, 5e-3 * 0.8535533905932737, 2.5e-3, 5e-3 * 0.1464466094067262]


@pytest.mark.parametrize("kind", ["lora", "zero2", "epochs"])
def test_the_steps_that_follow_have_the_learning_rates_of_the_longer_schedule(runs, kind):
    curve = read_curve(runs[kind])
    assert [step for step, *_ in curve] == [1, 2, 3, 4]
    assert [rate for *_, rate, _ in curve][STEPS:] == pytest.approx(COSINE[STEPS:])
    assert json.loads((runs[kind] / "run_state.json").read_text())["status"] == "finished"


def test_every_parameter_group_follows_its_own_schedule(runs):
    history = json.loads((runs["lora"] / "trainer_state.json").read_text())["log_history"]
    assert history[STEPS]["learning_rate/vit"] == pytest.approx(COSINE[STEPS] / 5)


def test_a_run_does_not_go_on_from_files_with_code(runs, checkpoint, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["zero2"], run)
    last = run / f"checkpoint-{MORE_STEPS}"
    path = next(last.glob("global_step*/*_optim_states.pt"))
    save_code(path, Poison(tmp_path / "was run"))
    marker = json.loads((last / "complete.json").read_text())
    marker["files"][str(path.relative_to(last))] = path.stat().st_size
    (last / "complete.json").write_text(json.dumps(marker))
    meta = runs["zero2"].parent / "data" / "meta.json"
    deepspeed = zero_config(tmp_path, 2)
    result = train(flags(checkpoint, meta, run, **PLAIN, max_steps=6, deepspeed=deepspeed))
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*optim_states.pt names posix.mkdir, which may run code.*\n", result.stderr), tail(
        result
    )
    assert not (tmp_path / "was run").exists()
