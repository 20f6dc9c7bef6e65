import pytest

from internvl.errors import ConfigError
from internvl.train.checkpointing import find_resume_checkpoint, replace_files


def test_a_new_folder_starts_from_the_beginning(tmp_path):
    assert find_resume_checkpoint(str(tmp_path / "new"), overwrite=False) is None


def test_logs_alone_do_not_make_a_folder_used(tmp_path):
    (tmp_path / "training_log.txt").touch()
    (tmp_path / "runs").mkdir()
    assert find_resume_checkpoint(str(tmp_path), overwrite=False) is None


def test_the_last_checkpoint_is_found(tmp_path):
    for step in (5, 20, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
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
    (tmp_path / "trainer_state.json").touch()
    assert find_resume_checkpoint(str(tmp_path), overwrite=False, wanted=str(tmp_path)) == str(tmp_path)


def test_files_appear_together_and_stale_weights_go(tmp_path):
    for name in ("model.safetensors", "notes.txt"):
        (tmp_path / name).write_text("old")
    with replace_files(tmp_path) as staging:
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
        with replace_files(tmp_path) as staging:
            (staging / "model.safetensors").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "old"
