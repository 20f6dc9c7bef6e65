"""A recipe that was started with `sh` on the test slurm, and what a user would export for it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from internvl.train.run.state import RunState, read_run_state
from tests.slurm.cluster import PARTITION, Cluster
from tests.train.tiny_run import REPOSITORY, clean_environment

SHELL = REPOSITORY / "shell"
PRETRAIN = SHELL / "tiny" / "pretrain.sh"
NUM_STEPS = 60


class Job:
    """A recipe that was started with `sh`, and follows its job."""

    def __init__(self, cluster: Cluster, recipe: Path, *flags: str, **environ: str):
        self.cluster = cluster
        self.output = Path(environ["OUTPUT_DIR"])
        self.logs = Path(environ["LOG_DIR"])
        self.process = subprocess.Popen(
            ["sh", str(recipe), *flags],
            env=clean_environment(**cluster.environ, **environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @property
    def number(self) -> str:
        """The job's number, once slurm has given it one."""
        self.wait_until(lambda: self.logs.is_dir() and list(self.logs.glob("*.log")))
        return next(self.logs.glob("*.log")).stem.rpartition("-")[2]

    @property
    def state(self) -> RunState | None:
        return read_run_state(self.output)

    def wait_for_step(self, step: int, *, attempt: int = 1) -> None:
        self.wait_until(lambda: (now := self.state) is not None and (now.attempt, now.step) >= (attempt, step))

    def wait_until(self, condition, *, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(self.end() + self.cluster.logs())
            time.sleep(0.05)

    def finish(self, *, timeout_s: float = 300) -> tuple[int, str]:
        """(exit code of the recipe, all that it showed)."""
        try:
            text, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(self.end() + self.cluster.logs())
        return self.process.returncode, text

    def end(self) -> str:
        """Cancel the job, stop following; returns what was shown."""
        self.cluster.query("scancel", "--full", "--signal=KILL", *self.cluster.query("squeue", "-h", "-o", "%A"))
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.communicate(timeout=60)[0][-6000:]


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float = 400) -> None:
    """Wait for something that happens without a process of ours."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.1)


def wait_for_end(cluster: Cluster, *jobs: str) -> None:
    """Wait until slurm has ended the jobs, and calls all of them complete."""
    wait_until(lambda: not cluster.query("squeue", "-h", "-j", ",".join(jobs)), f"the end of {jobs}")
    assert {job: cluster.field(job, "JobState") for job in jobs} == dict.fromkeys(jobs, "COMPLETED"), cluster.logs()


def settings(checkpoint: Path, meta: Path, folder: Path, **changes: str) -> dict[str, str]:
    """What a user would export: one rank on each node."""
    return {
        "PARTITION": PARTITION,
        "GPUS": "2",
        "GPUS_PER_NODE": "1",
        "CPUS_PER_TASK": "1",
        "MODEL_PATH": str(checkpoint),
        "META_PATH": str(meta),
        "DATA_ROOT": str(meta.parent),
        "OUTPUT_DIR": str(folder / "out"),
        "LOG_DIR": str(folder / "log"),
        "MAX_STEPS": str(NUM_STEPS),
        "MAX_SEQ_LENGTH": "512",
        "MAX_PACKED_TOKENS": "512",
        **changes,
    }
