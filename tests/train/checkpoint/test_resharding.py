import json
import subprocess
from pathlib import Path

import pytest
import torch

from internvl.errors import CheckpointError, ConfigError
from internvl.train.checkpoint import resharding
from internvl.train.checkpoint.resharding import (
    check_engine,
    find_slices,
    restore_settings,
    write_universal_copy,
)


def make_checkpoint(folder: Path, *, num_ranks: int, stage: int) -> Path:
    """The names of a checkpoint's files, as DeepSpeed (stage 0: the Trainer alone) writes them."""
    slices = folder / "global_step4"
    slices.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4}))
    (folder / "model.safetensors").write_text("large")
    (folder / "training_args.bin").write_text("pickle")
    for rank in range(num_ranks if stage else 0):
        (slices / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        if stage == 3:
            (slices / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").touch()
    if stage in (1, 2):
        (slices / "mp_rank_00_model_states.pt").touch()
    return folder


@pytest.mark.parametrize(("stage", "has_weights"), [(1, False), (2, False), (3, True)])
def test_slices_are_counted(tmp_path, stage, has_weights):
    assert find_slices(make_checkpoint(tmp_path / "z", num_ranks=12, stage=stage)) == (
        resharding.Slices(12, has_weights)
    )
    assert find_slices(make_checkpoint(tmp_path / "plain", num_ranks=12, stage=0)) is None


FITTING = {(0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 3)}


@pytest.mark.parametrize("saved", [0, 1, 2, 3])
@pytest.mark.parametrize("now", [0, 1, 2, 3])
def test_an_optimiser_is_read_by_the_kind_of_engine_that_wrote_it(tmp_path, saved, now):
    checkpoint = make_checkpoint(tmp_path / "checkpoint-4", num_ranks=2, stage=saved)
    if (saved, now) in FITTING:
        check_engine(checkpoint, zero_stage=now)
        return
    with pytest.raises(ConfigError, match=r"was saved with.*this run (uses ZeRO-\d|goes without DeepSpeed)"):
        check_engine(checkpoint, zero_stage=now)


def test_a_failed_conversion_says_why_and_leaves_nothing(tmp_path):
    """The slices are no files of DeepSpeed: its converter fails."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint-4", num_ranks=2, stage=2)
    before = sorted(checkpoint.rglob("*"))
    with pytest.raises(CheckpointError, match=r"checkpoint-4 could not be converted(.|\n)*GiB are free(.|\n)*Error"):
        write_universal_copy(checkpoint, tmp_path)
    assert not (tmp_path / resharding.RESHARDED / "checkpoint-4").exists()
    assert sorted(checkpoint.rglob("*")) == before


def test_a_copy_has_the_small_files_and_replaces_an_unfinished_one(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path / "run+[1]" / "checkpoint-4", num_ranks=2, stage=2)
    stale = tmp_path / resharding.RESHARDED / "checkpoint-4" / "global_step4"
    stale.mkdir(parents=True)

    def convert(command, *, cwd, **kwargs):
        source, target = (cwd / command[command.index(flag) + 1] for flag in ("--input_folder", "--output_folder"))
        assert [path.name for path in source.iterdir()]
        assert not target.exists()
        (target / "zero").mkdir(parents=True)
        (target / "zero" / "optimizer_state.pt").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(resharding.subprocess, "run", convert)
    copy = write_universal_copy(checkpoint, tmp_path)
    assert sorted(path.name for path in copy.iterdir()) == ["global_step4", "trainer_state.json"]


def test_groups_get_their_own_settings_and_steps_back():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [weight], "lr": lr} for weight, lr in zip(weights, (0.1, 0.2), strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    shared = torch.tensor(4.0)
    for weight in weights:
        weight.grad = torch.ones(2)
        optimizer.state[weight] = {"step": shared, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    restore_settings(optimizer, [{"weight_decay": 0.5}, {"weight_decay": 0.25}])
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.1, 0.5), (0.2, 0.25)]
    assert [group["params"] for group in optimizer.param_groups] == [[weights[0]], [weights[1]]]
    optimizer.step()
    assert [float(optimizer.state[weight]["step"]) for weight in weights] == [5.0, 5.0]
    with pytest.raises(CheckpointError, match="2 parameter groups, the checkpoint 3"):
        restore_settings(optimizer, [{}, {}, {}])
