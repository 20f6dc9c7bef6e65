"""One owner per output folder: locks between processes, and what happens after an owner died."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from internvl import folder_owner
from internvl.errors import ConfigError
from internvl.folder_owner import SILENCE_S, own_folder

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from internvl.folder_owner import own_folder
with own_folder(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""
# Writes how often it was the only one into a file that two owners at a time would corrupt.
COUNTER = """
import sys, time
from pathlib import Path
from internvl.errors import ConfigError
from internvl.folder_owner import own_folder
folder, count = Path(sys.argv[1]), 0
while count < 20:
    try:
        with own_folder(folder, "counting"):
            marker = folder / "busy"
            marker.touch(exist_ok=False)
            marker.unlink()
            count += 1
    except ConfigError:
        time.sleep(0.001)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder `out`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def lock_of(folder):
    return folder.with_name(f".{folder.name}.owner")


def leave_lock(folder, *, age_s=0.0, **changes):
    """The lock file of an owner that is gone."""
    with own_folder(folder, "training"):
        content = json.loads(lock_of(folder).read_text())
    lock_of(folder).write_text(json.dumps({**content, **changes}))
    os.utime(lock_of(folder), (time.time() - age_s,) * 2)


def test_a_second_owner_is_told_who_has_the_folder_and_since_when(tmp_path, holder):
    with (
        pytest.raises(ConfigError, match=rf"training \(process {holder.pid} on .*since 20.*Nothing was changed"),
        own_folder(tmp_path / "out", "eval.run"),
    ):
        pytest.fail("two owners")
    assert holder.poll() is None


def test_other_names_of_the_folder_are_the_same_folder(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path)
    other_name = tmp_path / "link" / ".." / tmp_path.name / "out"
    with pytest.raises(ConfigError, match="is being written by"), own_folder(other_name, "eval.run"):
        pytest.fail("two owners")


def test_the_lock_of_a_killed_owner_is_taken_over(tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    assert lock_of(tmp_path / "out").exists()
    with own_folder(tmp_path / "out", "eval.run"):
        pass
    assert f"taken over from training (process {holder.pid} " in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_owner_leaves_nothing_behind(tmp_path, error):
    outcome = pytest.raises(error) if error else nullcontext()
    with outcome, own_folder(tmp_path / "a/b/out", "training"):
        assert lock_of(tmp_path / "a/b/out").exists()
        if error:
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_silent_owner_on_another_machine_is_dead(tmp_path):
    leave_lock(tmp_path / "out", machine="other", age_s=SILENCE_S + 5)
    with own_folder(tmp_path / "out", "training"):
        pass


def test_an_owner_on_another_machine_that_gives_signs_of_life_is_alive(tmp_path):
    """As on file systems whose locks do not reach other machines."""
    leave_lock(tmp_path / "out", machine="other", host="node7")
    before = lock_of(tmp_path / "out").read_text()
    with pytest.raises(ConfigError, match=r"on node7.*try again in 90 s"), own_folder(tmp_path / "out", "training"):
        pytest.fail("two owners")
    assert lock_of(tmp_path / "out").read_text() == before


@pytest.mark.parametrize(("job", "is_free"), [("17", True), ("18", False)])
def test_a_job_that_slurm_started_again_takes_its_folder_back(tmp_path, monkeypatch, job, is_free):
    leave_lock(tmp_path / "out", machine="other", job="17", restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    if is_free:
        with own_folder(tmp_path / "out", "training"):
            pass
    else:
        with pytest.raises(ConfigError, match="slurm job 17"), own_folder(tmp_path / "out", "training"):
            pytest.fail("two owners")


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_owner, "HEARTBEAT_S", 0.01)
    with own_folder(tmp_path / "out", "training"):
        os.utime(lock_of(tmp_path / "out"), (0, 0))
        deadline = time.monotonic() + 20
        while os.stat(lock_of(tmp_path / "out")).st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "\0" * 100])
def test_a_damaged_lock_file_is_no_obstacle(tmp_path, content):
    lock_of(tmp_path / "out").write_text(content)
    with own_folder(tmp_path / "out", "training"):
        pass


def test_without_locks_of_the_file_system_the_signs_of_life_decide(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder_owner.fcntl, "lockf", refuse)
    for changes in ({"machine": "other"}, {"process": os.getppid()}):
        leave_lock(tmp_path / "out", **changes)
        with pytest.raises(ConfigError, match="is being written by"), own_folder(tmp_path / "out", "training"):
            pytest.fail("two owners")
        lock_of(tmp_path / "out").unlink()
    leave_lock(tmp_path / "out", process=2**22 + 1)  # above the largest that Linux gives
    with own_folder(tmp_path / "out", "training"):
        pass


def test_there_is_one_owner_at_a_time_however_often_the_folder_changes_hands(tmp_path):
    (tmp_path / "out").mkdir()
    workers = [subprocess.Popen([sys.executable, "-c", COUNTER, str(tmp_path / "out")], cwd=ROOT) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
