import errno
import json
import logging
import os
import resource
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState

from internvl.errors import CheckpointError, ConfigError
from internvl.train.checkpoint import writing as checkpointing
from internvl.train.checkpoint.contents import (
    MARKER,
    POSITION_FILE,
    find_problem,
    list_checkpoints,
    list_files,
    read_position,
)
from internvl.train.checkpoint.resume import find_resume_checkpoint
from internvl.train.checkpoint.writing import (
    CheckpointWriter,
    PublishWhenWritten,
    explain_failed_write,
    publish_checkpoint,
    remove_leftovers,
    replace_model_files,
    rotate_checkpoints,
    staging_folder,
)

WEIGHTS = {"a": torch.zeros(3), "b": torch.ones(2, 2)}


def stage(output_dir: Path, step: int, *, losses: dict[int, float] | None = None) -> Path:
    """The files of a checkpoint of two ranks, as they lie before it is published; `losses` are those logged so far."""
    folder = staging_folder(output_dir) / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    for rank in range(2):
        (folder / f"global_step{step}" / f"rank_{rank}.pt").write_bytes(b"optimiser" * (1 + rank))
    history = [{"step": step, "loss": loss} for step, loss in (losses or {}).items()]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
    (folder / POSITION_FILE).write_text("{}")
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


def publish(staged: Path) -> Path:
    return publish_checkpoint(staged, listings=[list_files(staged)], weight_names=set(WEIGHTS), num_ranks=2)


def make_checkpoints(output_dir: Path, *steps: int) -> list[Path]:
    return [publish(stage(output_dir, step)) for step in steps]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "it has no complete.json": lambda folder: (folder / MARKER).unlink(),
    "complete.json cannot be read": lambda folder: truncate(folder / MARKER),
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "model.safetensors has": lambda folder: truncate(folder / "model.safetensors"),
    "rank_1.pt is missing": lambda folder: next(folder.glob("global_step*/rank_1.pt")).unlink(),
    "rank_0.pt has 8 bytes, expected 9": lambda folder: truncate(next(folder.glob("global_step*/rank_0.pt"))),
    "trainer_state.json cannot be read": lambda folder: fill(folder / "trainer_state.json"),
    "the weights cannot be read": lambda folder: fill(folder / "model.safetensors"),
}


def fill(path: Path) -> None:
    """Another content of the same size."""
    path.write_bytes(b"\xff" * path.stat().st_size)


# Which checkpoint


def test_a_new_folder_starts_from_the_beginning(tmp_path):
    assert find_resume_checkpoint(str(tmp_path / "new"), overwrite=False) is None


def test_a_folder_without_model_does_not_count_as_used(tmp_path):
    """A run that was killed before its first checkpoint starts again, whatever it left behind."""
    for name in ("training_log.txt", "run_state.json"):
        (tmp_path / name).touch()
    (tmp_path / "runs").mkdir()
    stage(tmp_path, 5)
    assert find_resume_checkpoint(str(tmp_path), overwrite=False) is None


def test_the_last_checkpoint_is_found(tmp_path):
    make_checkpoints(tmp_path, 5, 20, 10)
    assert find_resume_checkpoint(str(tmp_path), overwrite=False) == str(tmp_path / "checkpoint-20")
    assert find_resume_checkpoint(str(tmp_path), overwrite=True) is None


def test_a_used_folder_without_checkpoint_is_an_error(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match="not empty and holds no checkpoint"):
        find_resume_checkpoint(str(tmp_path), overwrite=False)
    assert find_resume_checkpoint(str(tmp_path), overwrite=True) is None


def test_an_explicit_checkpoint_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such checkpoint"):
        find_resume_checkpoint(str(tmp_path), overwrite=False, wanted=str(tmp_path / "checkpoint-3"))
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    assert find_resume_checkpoint(str(tmp_path), overwrite=False, wanted=str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("cause", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, cause):
    first, second, last = make_checkpoints(tmp_path, 10, 20, 30)
    DAMAGES[cause](last)
    with caplog.at_level(logging.WARNING):
        assert find_resume_checkpoint(str(tmp_path), overwrite=False) == str(second)
    assert f"{last} is damaged" in caplog.text
    assert cause in caplog.text
    assert "continuing from checkpoint-20" in caplog.text
    DAMAGES[cause](second)
    assert find_resume_checkpoint(str(tmp_path), overwrite=False) == str(first)


def test_a_folder_of_damaged_checkpoints_is_an_error_that_lists_them(tmp_path):
    for checkpoint in make_checkpoints(tmp_path, 10, 20):
        truncate(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints is complete(.|\n)*checkpoint-20: model.*has"):
        find_resume_checkpoint(str(tmp_path), overwrite=False)


def test_an_explicit_checkpoint_that_is_damaged_gives_way_within_the_run_only(tmp_path):
    first, second, last = make_checkpoints(tmp_path / "run", 10, 20, 30)
    truncate(second / "model.safetensors")
    assert find_resume_checkpoint(str(tmp_path / "run"), overwrite=False, wanted=str(second)) == str(first)
    assert find_resume_checkpoint(str(tmp_path / "new"), overwrite=False, wanted=str(last)) == str(last)
    with pytest.raises(CheckpointError, match=r"checkpoint-20: model\.safetensors has"):
        find_resume_checkpoint(str(tmp_path / "new"), overwrite=False, wanted=str(second))


def test_a_checkpoint_without_data_position_is_an_error(tmp_path):
    (checkpoint,) = make_checkpoints(tmp_path, 10)
    assert read_position(checkpoint) == {}
    (checkpoint / POSITION_FILE).unlink()
    with pytest.raises(CheckpointError, match="--ignore_data_skip True"):
        read_position(checkpoint)


# Writing one


def test_a_checkpoint_appears_as_a_whole(tmp_path):
    staged = stage(tmp_path, 10)
    assert not (tmp_path / "checkpoint-10").exists()
    checkpoint = publish(staged)
    assert checkpoint == tmp_path / "checkpoint-10"
    assert not staged.exists()
    assert find_problem(checkpoint) is None
    marker = json.loads((checkpoint / MARKER).read_text())
    assert marker["files"]["global_step10/rank_1.pt"] == 18
    assert (marker["num_weights"], marker["num_ranks"]) == (2, 2)


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    (old,) = make_checkpoints(tmp_path, 10)
    truncate(old / "model.safetensors")
    (old / "old").touch()
    (new,) = make_checkpoints(tmp_path, 10)
    assert find_problem(new) is None
    assert not (new / "old").exists()


def test_a_run_killed_before_the_rename_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    (old,) = make_checkpoints(tmp_path, 10)

    def killed(*args):
        raise KeyboardInterrupt

    staged = stage(tmp_path, 20)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(staged)
    assert find_resume_checkpoint(str(tmp_path), overwrite=False) == str(old)
    assert staging_folder(tmp_path).exists()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_files_that_only_other_nodes_see_are_waited_for(tmp_path, monkeypatch):
    staged = stage(tmp_path, 10)
    elsewhere = {"global_step10/rank_9.pt": 4}

    def arrive(seconds):
        (staged / "global_step10" / "rank_9.pt").write_bytes(b"late")

    monkeypatch.setattr(checkpointing.time, "sleep", arrive)
    checkpoint = publish_checkpoint(staged, listings=[list_files(staged), elsewhere], weight_names=WEIGHTS, num_ranks=2)
    assert find_problem(checkpoint) is None
    truncate(checkpoint / "global_step10" / "rank_9.pt")
    assert find_problem(checkpoint) == "global_step10/rank_9.pt has 3 bytes, expected 4"


def test_files_that_never_arrive_and_missing_weights_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "_VISIBLE_WITHIN_S", 0.0)
    staged = stage(tmp_path, 10)
    with pytest.raises(CheckpointError, match=r"other\.pt is missing; --output_dir must be one folder"):
        publish_checkpoint(staged, listings=[{"other.pt": 4}], weight_names=WEIGHTS, num_ranks=2)
    with pytest.raises(CheckpointError, match="1 weights were not written, among them c"):
        publish_checkpoint(staged, listings=[list_files(staged)], weight_names=[*WEIGHTS, "c"], num_ranks=2)
    assert not (tmp_path / "checkpoint-10").exists()


# Keeping the last ones


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


def test_the_last_checkpoints_stay(tmp_path):
    *_, newest = make_checkpoints(tmp_path, 2, 4, 6, 8, 10)
    rotate_checkpoints(newest, keep=None)
    assert len(names_of(tmp_path)) == 5
    rotate_checkpoints(newest, keep=2)
    assert names_of(tmp_path) == ["checkpoint-10", "checkpoint-8"]
    rotate_checkpoints(newest, keep=1)
    assert names_of(tmp_path) == ["checkpoint-10"]


LOSSES = {1: 5.0, 2: 4.0, 3: 2.5, 4: 3.0, 5: 1.0, 6: 9.0, 7: float("nan"), 8: 0.0, 9: 8.0, 10: 8.0}


def make_run(output_dir: Path, *, keep: int, last: int = 10) -> None:
    """A checkpoint every other step, each followed by rotation."""
    for step in range(2, last + 1, 2):
        rotate_checkpoints(
            publish(stage(output_dir, step, losses={s: v for s, v in LOSSES.items() if s <= step})), keep=keep
        )


def test_the_best_checkpoint_stays_besides_the_last_ones(tmp_path):
    """The one of step 4: its two steps have the lowest mean; single lower losses and a nan do not count."""
    make_run(tmp_path, keep=2)
    assert names_of(tmp_path) == ["checkpoint-10", "checkpoint-4", "checkpoint-8"]
    losses = [json.loads((tmp_path / name / MARKER).read_text())["loss"] for name in names_of(tmp_path)]
    assert losses == [8.0, 2.75, None]


def test_a_best_checkpoint_gives_way_to_a_better_one(tmp_path):
    make_run(tmp_path, keep=1, last=6)
    assert names_of(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    better = publish(stage(tmp_path, 8, losses={7: 2.0, 8: 2.0}))
    rotate_checkpoints(better, keep=1)
    assert names_of(tmp_path) == ["checkpoint-8"]
    equal = publish(stage(tmp_path, 10, losses={9: 2.0}))
    rotate_checkpoints(equal, keep=1)
    assert names_of(tmp_path) == ["checkpoint-10", "checkpoint-8"]


def test_a_damaged_checkpoint_is_not_the_best(tmp_path):
    make_run(tmp_path, keep=2, last=8)
    truncate(tmp_path / "checkpoint-4" / "model.safetensors")
    rotate_checkpoints(publish(stage(tmp_path, 10, losses=LOSSES)), keep=2)
    assert names_of(tmp_path) == ["checkpoint-10", "checkpoint-6", "checkpoint-8"]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path):
    *_, third, newest = make_checkpoints(tmp_path, 2, 4, 6, 8)
    truncate(third / "model.safetensors")
    rotate_checkpoints(newest, keep=2)
    assert names_of(tmp_path) == ["checkpoint-4", "checkpoint-8"]


@pytest.mark.parametrize("cause", DAMAGES)
def test_nothing_is_deleted_while_the_newest_is_damaged(tmp_path, cause):
    *_, newest = make_checkpoints(tmp_path, 2, 4, 6)
    DAMAGES[cause](newest)
    with pytest.raises(CheckpointError, match="damaged while it was saved"):
        rotate_checkpoints(newest, keep=1)
    assert len(names_of(tmp_path)) == 3


# A full disk


def write_torch(folder: Path) -> None:
    torch.save(torch.zeros(1_000_000), folder / "optimizer.pt")


def write_weights(folder: Path) -> None:
    save_file({"a": torch.zeros(1_000_000)}, folder / "model.safetensors")


def write_text(folder: Path) -> None:
    (folder / "trainer_state.json").write_text("0" * 4_000_000)


WRITERS = [write_torch, write_weights, write_text]


@pytest.fixture
def limited_files():
    """No file may grow beyond 2 MB, which fails in write(2) as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", WRITERS)
def test_a_failed_write_is_explained(tmp_path, limited_files, write):
    with pytest.raises(CheckpointError, match=r"could not be written to .* MiB are free.*saved before are intact"):  # noqa: SIM117
        with explain_failed_write(tmp_path):
            write(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_leaves_the_checkpoint_before(small_disk, write):
    (old,) = make_checkpoints(small_disk, 10)
    staged = stage(small_disk, 20)
    with pytest.raises(CheckpointError, match=r"[012] MiB are free"), explain_failed_write(small_disk):
        write(staged)
    assert find_resume_checkpoint(str(small_disk), overwrite=False) == str(old)
    remove_leftovers(small_disk)
    assert find_problem(make_checkpoints(small_disk, 30)[0]) is None


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), RuntimeError("out of memory"), ValueError("x")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error), match=str(error).replace("[", r"\[")), explain_failed_write(tmp_path):
        raise error


# Files of a finished run


def test_files_appear_together_and_stale_weights_go(tmp_path):
    for name in ("model.safetensors", "notes.txt"):
        (tmp_path / name).write_text("old")
    with replace_model_files(tmp_path) as staging:
        (staging / "model-00001-of-00001.safetensors").write_text("new")
        (staging / "config.json").write_text("new")
        assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["model.safetensors", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "notes.txt",
    ]


def test_a_failed_save_leaves_the_old_files(tmp_path):
    (tmp_path / "model.safetensors").write_text("old")

    def save():
        with replace_model_files(tmp_path) as staging:
            (staging / "model.safetensors").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "old"


# All of it together


class Model:
    all_tied_weights_keys = ("b",)

    def save_pretrained(self, folder, state_dict):
        save_file(state_dict, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")


class Tokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.model").touch()


def make_writer(tmp_path: Path, **options: bool) -> CheckpointWriter:
    companion = tmp_path / "generation_config.json"
    companion.write_text("{}")
    ranks = {"is_main": True, "is_node_main": True, "num_ranks": 1}
    return CheckpointWriter(tmp_path / "run", **ranks, keep=1, tokenizer=Tokenizer(), companions=[companion], **options)


@pytest.fixture(params=[True, False], ids=["in the background", "at once"])
def writer(request, tmp_path) -> CheckpointWriter:
    return make_writer(tmp_path, in_background=request.param)


def write(writer: CheckpointWriter, step: int, *, model=None, **options: bool) -> Path:
    position = {"version": 1, "plan": {}, "streams": {"0": {"rows": step, "skipped": 0}}}
    with writer.stage(step, **options) as staged:
        assert staged.parent == writer.folder != writer.output_dir
        writer.save_model(staged, model or Model(), dict(WEIGHTS), args=None)
        writer.save({"step": step}, staged / "optimizer.pt")
        writer.write_progress(staged, position=position, totals={"bad_steps": 0})
    writer.finish()
    return writer.output_dir / f"checkpoint-{step}"


def test_a_writer_stages_publishes_and_rotates(writer):
    first, second = write(writer, 5), write(writer, 10)
    assert find_problem(second) is None
    assert not first.exists()
    files = {"config.json", "model.safetensors", "tokenizer.model", "generation_config.json", "training_args.bin"}
    files |= {"optimizer.pt"}
    assert torch.load(second / "optimizer.pt") == {"step": 10}
    assert {path.name for path in second.iterdir()} == files | {"data_position.json", "totals.json", "complete.json"}
    assert read_position(second)["streams"] == {"0": {"rows": 10, "skipped": 0}}
    assert writer.folder == writer.output_dir
    write(writer, 15, keep_older=True)
    assert second.exists()


class Forgetful(Model):
    def save_pretrained(self, folder, state_dict):
        super().save_pretrained(folder, {"b": state_dict["b"]})


class Full(Model):
    def save_pretrained(self, folder, state_dict):
        raise OSError(errno.ENOSPC, "no space left")


@pytest.mark.parametrize(
    ("model", "reason"), [(Forgetful(), "1 weights were not written, among them a"), (Full(), "MiB are free")]
)
def test_a_failed_save_publishes_nothing_and_leaves_nothing(writer, model, reason):
    old = write(writer, 5)
    with pytest.raises(CheckpointError, match=reason):
        write(writer, 10, model=model)
    assert [path.name for path in writer.output_dir.iterdir()] == [old.name]
    assert writer.folder == writer.output_dir
    assert writer.unfinished is None
    assert find_problem(write(writer, 15)) is None


class Blocked(Model):
    """Writes when it may."""

    def __init__(self):
        self.may_write = threading.Event()

    def save_pretrained(self, folder, state_dict):
        assert self.may_write.wait(timeout=60)
        super().save_pretrained(folder, state_dict)


def end_step(writer: CheckpointWriter) -> None:
    arguments = SimpleNamespace(device=torch.device("cpu"))
    PublishWhenWritten(writer).on_step_end(arguments, TrainerState(), TrainerControl())


def test_steps_go_on_while_a_checkpoint_is_written_and_one_of_them_publishes_it(tmp_path):
    writer, model, published = make_writer(tmp_path), Blocked(), []
    writer.note_published = published.append
    weights, moments = {name: tensor.clone() for name, tensor in WEIGHTS.items()}, torch.ones(3)
    with writer.stage(5) as staged:
        writer.save_model(staged, model, weights, args=None)
        writer.save({"moments": moments}, staged / "optimizer.pt")
        writer.write_progress(staged, position={"version": 1, "plan": {}, "streams": {}}, totals={})
    moments += 1  # as the next step does
    for weight in weights.values():
        weight += 1
    end_step(writer)
    assert writer.is_writing
    assert list_checkpoints(writer.output_dir) == published == []
    model.may_write.set()
    while writer.is_writing:
        time.sleep(0.01)
    end_step(writer)
    (checkpoint,) = list_checkpoints(writer.output_dir)
    assert find_problem(checkpoint) is None
    assert published == [5]
    assert torch.equal(torch.load(checkpoint / "optimizer.pt")["moments"], torch.ones(3))
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in WEIGHTS.items())


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path):
    writer, model = make_writer(tmp_path), Blocked()
    with writer.stage(5) as staged:
        writer.save_model(staged, model, dict(WEIGHTS), args=None)
    threading.Timer(0.2, model.may_write.set).start()
    with writer.stage(10) as staged:
        assert [path.name for path in list_checkpoints(writer.output_dir)] == ["checkpoint-5"]
        writer.save_model(staged, Model(), dict(WEIGHTS), args=None)
    writer.finish()
    assert [path.name for path in list_checkpoints(writer.output_dir)] == ["checkpoint-10"]
