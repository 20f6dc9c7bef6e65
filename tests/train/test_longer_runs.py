"""Finished runs that are started again with more steps or epochs go on, as a run of that length does."""

import json
from pathlib import Path

import pytest

from tests.distributed.test_resume import LORA, WORKER, read_curve
from tests.distributed.test_training import zero_config
from tests.train.tiny_run import flags, launch, make_data, tail

STEPS, MORE_STEPS = 2, 4
PLAIN = {"use_packed_ds": False, "per_device_train_batch_size": 3, "max_seq_length": 256}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint) -> dict[str, Path]:
    """Folders of runs by kind; all were finished once, and then started again for longer, in one process each."""
    folder = tmp_path_factory.mktemp("longer")
    meta = make_data(folder / "data", num_records=6)  # two steps per epoch of three documents each
    kinds = {
        "cosine": {},
        "linear": {"lr_scheduler_type": "linear"},
        "constant_with_warmup": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
        "lora": LORA,
        "vision": {"vision_learning_rate": 1e-3},
        "zero2": {"deepspeed": zero_config(folder, 2)},
        "epochs": {"num_train_epochs": 1},
        "steps, then epochs": {},
    }
    starts = []
    for kind, options in kinds.items():
        options = PLAIN | {"save_strategy": "steps", "save_steps": 1} | options
        first = {"max_steps": None} if kind == "epochs" else {"max_steps": STEPS}
        second = {"max_steps": None, "num_train_epochs": 2} if "epochs" in kind else {"max_steps": MORE_STEPS}
        for limit in (first, second):
            starts.append([flags(checkpoint, meta, folder / kind, **(options | limit)), []])
    (folder / "runs.json").write_text(json.dumps(starts))
    result = launch(WORKER, [str(folder / "runs.json")], num_processes=1)
    assert result.returncode == 0, tail(result)
    return {kind: folder / kind for kind in kinds}


COSINE = [5e-3, 5e-3 * 0.8535533905932737, 2.5e-3, 5e-3 * 0.1464466094067262]
RATES = {
    "cosine": COSINE,
    "linear": [5e-3, 3.75e-3, 2.5e-3, 1.25e-3],
    "constant_with_warmup": [0, 5e-3 / 3, 1e-2 / 3, 5e-3],
    "lora": COSINE,
    "vision": COSINE,
    "zero2": COSINE,
    "epochs": COSINE,
    "steps, then epochs": COSINE,
}


@pytest.mark.parametrize("kind", RATES)
def test_the_steps_that_follow_have_the_learning_rates_of_the_longer_schedule(runs, kind):
    curve = read_curve(runs[kind])
    assert [step for step, *_ in curve] == [1, 2, 3, 4]
    assert [rate for *_, rate, _ in curve][STEPS:] == pytest.approx(RATES[kind][STEPS:])
    assert json.loads((runs[kind] / "run_state.json").read_text())["status"] == "finished"


def test_every_parameter_group_follows_its_own_schedule(runs):
    history = json.loads((runs["vision"] / "trainer_state.json").read_text())["log_history"]
    assert history[STEPS]["learning_rate/vit"] == pytest.approx(COSINE[STEPS] / 5)
