import collections
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from internvl.errors import CheckpointError
from internvl.train.checkpoint.pickles import check_pickles, read_pickle

STATE = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-3}]}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The files that training saves without DeepSpeed and with it."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    folder = tmp_path / "checkpoint-4"
    slices = folder / "global_step4"
    slices.mkdir(parents=True)
    torch.save(STATE, folder / "optimizer.pt")
    torch.save({"last_epoch": 4, "base_lrs": [1e-3], "lr_lambdas": [None]}, folder / "scheduler.pt")
    generators = {"python": (3, (1, 2), None), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    torch.save(generators, folder / "rng_state.pth")
    (folder / "training_args.bin").write_bytes(b"not opened, so not looked at")
    (folder / "latest").write_text("global_step4")
    module = collections.OrderedDict(w=torch.nn.Parameter(torch.ones(2)))
    torch.save({"module": module, "param_shapes": [torch.Size([2])], "dtype": torch.bfloat16},
               slices / "mp_rank_00_model_states.pt")  # fmt: skip
    records = [LossScaler(1.0), DynamicLossScaler(1, 2.0, 2, 1.0, 1, False, False), ZeroStageEnum(2)]
    torch.save({"records": [*records, fragment_address(3, 0)]}, slices / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return folder


def test_what_training_saves_is_taken(checkpoint):
    check_pickles(checkpoint)
    records = read_pickle(checkpoint / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")["records"]
    assert records[-1].numel == 3


class Poison:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_code(path: Path, evil: Poison) -> None:
    torch.save(STATE | {"more": evil}, path)


def save_code_in_the_old_format(path: Path, evil: Poison) -> None:
    torch.save(STATE | {"more": evil}, path, _use_new_zipfile_serialization=False)


def save_bare_pickle(path: Path, evil: Poison) -> None:
    path.write_bytes(pickle.dumps(evil))


def save_code_in_a_tar(path: Path, evil: Poison) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(evil)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def save_code_by_later_opcodes(path: Path, evil: Poison) -> None:
    """Protocol 4 names a function by strings on the stack."""
    torch.save(STATE | {"more": evil}, path, pickle_protocol=4)


def save_script(path: Path, evil: Poison) -> None:
    """A file for torch.jit.load, to which torch.load hands over."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("constants.pkl", "data.pkl", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", pickle.dumps(evil, protocol=2))


def save_part(path: Path, evil: Poison) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-300])


def save_nothing(path: Path, evil: Poison) -> None:
    path.write_bytes(b"")


def make_pipe(path: Path, evil: Poison) -> None:
    path.unlink()
    os.mkfifo(path)


BROKEN = [save_code, save_code_in_the_old_format, save_bare_pickle, save_code_in_a_tar, save_code_by_later_opcodes,
          save_script, save_part, save_nothing, make_pipe]  # fmt: skip
FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "global_step4/mp_rank_00_model_states.pt",
         "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("save", BROKEN)
def test_anything_else_is_refused_in_one_line_and_nothing_of_it_runs(checkpoint, tmp_path, save, name):
    save(checkpoint / name, Poison(tmp_path / "was run"))
    with pytest.raises(CheckpointError, match=name) as refusal:
        check_pickles(checkpoint)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "was run").exists()


def test_code_is_named(checkpoint, tmp_path):
    save_code(checkpoint / "optimizer.pt", Poison(tmp_path / "was run"))
    with pytest.raises(CheckpointError, match=r"optimizer.pt names posix.mkdir, which may run code"):
        check_pickles(checkpoint)
    with pytest.raises(CheckpointError, match=r"names posix.mkdir"):
        read_pickle(checkpoint / "optimizer.pt")


@pytest.mark.parametrize("text", ["../elsewhere", "/tmp", "global_step5", ""])
def test_deepspeed_is_not_sent_to_other_folders(checkpoint, text):
    (checkpoint / "latest").write_text(text)
    with pytest.raises(CheckpointError, match="latest names no folder of the checkpoint"):
        check_pickles(checkpoint)


def test_a_pipe_is_not_waited_for(checkpoint):
    make_pipe(checkpoint / "latest", Poison(checkpoint))
    with pytest.raises(CheckpointError, match="latest names no folder"):
        check_pickles(checkpoint)


def test_slices_behind_a_link_are_checked_too(checkpoint, tmp_path):
    elsewhere = (checkpoint / "global_step4").rename(tmp_path / "elsewhere")
    (checkpoint / "global_step4").symlink_to(elsewhere)
    check_pickles(checkpoint)
    save_code(elsewhere / "mp_rank_00_model_states.pt", Poison(tmp_path / "was run"))
    with pytest.raises(CheckpointError, match="may run code"):
        check_pickles(checkpoint)
