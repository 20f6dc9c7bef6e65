"""Training jobs on a real slurm of two nodes: submitted, preempted, crashed, requeued, finished.

All jobs are recipes of shell/tiny/, changed through environment variables only, as users start them.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.train.run.state import RunState, read_run_state
from tests.slurm.job import NUM_STEPS, PRETRAIN, SHELL, Job, settings

pytestmark = pytest.mark.slow  # minutes on two cores


@pytest.fixture(scope="module")
def undisturbed(cluster, checkpoint, meta, tmp_path_factory) -> Path:
    """Output folder of a job that ran to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, text = Job(cluster, PRETRAIN, **settings(checkpoint, meta, folder)).finish()
    assert code == 0, text[-6000:]
    return folder / "out"


def assert_same_end(output: Path, reference: Path) -> None:
    assert read_run_state(output).status == "finished"
    # Not the last logged loss: behind a restart it is the mean of fewer steps.
    weights, expected = load_file(output / "model.safetensors"), load_file(reference / "model.safetensors")
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-6)
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == NUM_STEPS


def test_a_recipe_runs_on_two_nodes(undisturbed, cluster):
    assert read_run_state(undisturbed) == RunState("finished", step=NUM_STEPS)
    (log,) = undisturbed.with_name("log").iterdir()
    assert f"step {NUM_STEPS}/{NUM_STEPS}" in log.read_text()
    assert cluster.field(log.stem.rpartition("-")[2], "NodeList") == "node[1-2]"


def test_a_preempted_job_saves_requeues_itself_and_ends_like_an_undisturbed_one(submit, undisturbed, cluster):
    job = submit(NUM_WORKERS="1")
    job.wait_for_step(3)
    cluster.query("scancel", "-b", "-s", "USR1", job.number)
    code, text = job.finish()
    assert code == 0, text[-6000:]
    assert cluster.field(job.number, "Restarts") == "1"
    assert "saved after step" in text
    assert job.state.attempt == 2
    assert job.state.failed_step is None
    assert_same_end(job.output, undisturbed)


def test_a_finished_job_does_not_start_again(submit, undisturbed):
    code, text = submit(OUTPUT_DIR=str(undisturbed), GPUS="1").finish()
    assert code == 0, text[-6000:]
    assert f"this run finished at step {NUM_STEPS}" in text
    assert f"step {NUM_STEPS}/{NUM_STEPS}  loss" not in text
    assert read_run_state(undisturbed).attempt == 1


def test_an_error_of_the_user_is_not_requeued(submit, cluster):
    job = submit(META_PATH="/nowhere.json")
    number = job.number
    code, text = job.finish()
    assert code not in (0, 85)
    assert "/nowhere.json" in text
    assert "not requeued" in text
    assert cluster.field(number, "Restarts") == "0"


def test_the_time_limit_only_interrupts(submit, cluster):
    job = submit(TIME_LIMIT="60", SIGNAL_SECONDS="3590", MAX_STEPS="100000")
    job.wait_for_step(1, attempt=2)
    assert cluster.field(job.number, "Restarts") == "1"
    assert "stopping behind step" in (job.output / "training_log.txt").read_text()


def test_a_crashed_node_costs_the_steps_behind_the_last_checkpoint(submit, undisturbed, cluster):
    job = submit(PRETRAIN, "--save_strategy", "steps", "--save_steps", "10")
    job.wait_for_step(14)
    cluster.crash("node2")
    number = job.number
    job.wait_until(lambda: cluster.field(number, "Restarts") == "1")
    cluster.restore("node2")
    code, text = job.finish()
    assert code == 0, text[-6000:]
    # Slurm may end what it believes to be the crashed step once more, which stops and requeues the run again.
    assert int(cluster.field(number, "Restarts")) >= 1
    assert "/checkpoint-10\n" in (job.output / "training_log.txt").read_text()
    assert_same_end(job.output, undisturbed)


# Kills rank 0 whenever it begins step 7.
DEATH_IN_STEP_7 = """
import json, os, signal
replace = os.replace
def replace_and_die(source, target):
    replace(source, target)
    if str(target).endswith("run_state.json") and json.load(open(target))["step"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace_and_die
"""


def test_starts_without_progress_end_the_job(submit, cluster, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(DEATH_IN_STEP_7)
    job = submit(PYTHONPATH=str(tmp_path))
    number = job.number
    code, text = job.finish()
    assert code == 86, text[-6000:]
    assert len(re.findall(r"failed in step 7 \(code \d+\); requeued", text)) == 3
    assert "3 starts in a row died without a new checkpoint, the last ones in step 7" in text
    assert cluster.field(number, "Restarts") == "3"


def test_torchrun_on_two_nodes_is_preempted_too(submit, undisturbed, cluster):
    job = submit(LAUNCHER="pytorch", SUBMIT="1", NNODES="2")
    job.wait_for_step(3)
    cluster.query("scancel", "-b", "-s", "USR1", job.number)
    code, text = job.finish()
    assert code == 0, text[-6000:]
    assert cluster.field(job.number, "Restarts") == "1"
    assert "shell/launch.sh" in text
    assert cluster.field(job.number, "NodeList") == "node[1-2]"
    assert_same_end(job.output, undisturbed)


def test_the_deepspeed_launcher_on_two_nodes(submit, undisturbed):
    job = submit(LAUNCHER="deepspeed", SUBMIT="1", NNODES="2")
    code, text = job.finish()
    assert code == 0, text[-6000:]
    assert "shell/launch.sh" in text
    assert_same_end(job.output, undisturbed)


def test_stage_two_runs_on_two_nodes(submit, undisturbed):
    job = submit(SHELL / "tiny" / "finetune_v2pe.sh", MODEL_PATH=str(undisturbed), MAX_STEPS="12")
    code, text = job.finish()
    assert code == 0, text[-6000:]
    assert job.state == RunState("finished", step=12)
