"""Every recipe of shell/internlm2_2b/ runs to its end on two nodes, with nothing but variables changed."""

import json
import subprocess

import pytest
from safetensors import safe_open

from internvl.train.run.state import read_run_state
from tests.slurm.benchmark import run_script, write_benchmark
from tests.slurm.cluster import PARTITION
from tests.slurm.job import SHELL, settings, wait_for_end, wait_until
from tests.train.tiny_run import clean_environment

RECIPES = SHELL / "internlm2_2b"
LONG = "internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_256k.sh"
NUM_STEPS = 2
# Rows that suit the tiny checkpoint, whose tiles are 28 pixels wide.
TINY_ROWS = {"IMAGE_SIZE": "28", "MAX_TOKENS": "320", "MAX_TILES": "16", "MAX_STEPS": str(NUM_STEPS)}
pytestmark = pytest.mark.slow  # real jobs


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("baseline.sh", {}),
        ("internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh", {}),
        (LONG, {"CHUNK_NUM": "2"}),
        (LONG, {"CHUNK_NUM": "2", "LAUNCHER": "pytorch", "SUBMIT": "1"}),
        ("lora_24gb.sh", {"BATCH_SIZE": "2"}),
        ("lora_80gb.sh", {"BATCH_SIZE": "4"}),
    ],
    ids=["baseline", "32k", "256k", "256k-torchrun", "lora_24gb", "lora_80gb"],
)
def test_a_recipe_runs_to_its_end(submit, cluster, recipe, changes):
    job = submit(RECIPES / recipe, **TINY_ROWS, **changes)
    number = job.number
    code, text = job.finish()
    assert code == 0, text[-6000:]
    assert (job.state.status, job.state.step) == ("finished", NUM_STEPS)
    assert cluster.field(number, "NodeList") == "node[1-2]"
    with safe_open(job.output / "model.safetensors", framework="pt") as weights:
        assert not [name for name in weights.keys() if "lora" in name]  # noqa: SIM118  (not a dict)


ALLOCATION = ["salloc", "-p", PARTITION, "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--gres=gpu:1"]


@pytest.mark.parametrize("prefix", [[], ALLOCATION], ids=["srun", "salloc"])
def test_a_recipe_is_a_step_without_a_job_of_its_own(cluster, checkpoint, meta, tmp_path, prefix):
    environ = {"SUBMIT": "" if prefix else "0", **settings(checkpoint, meta, tmp_path, **TINY_ROWS)}
    result = subprocess.run(
        [*prefix, "sh", str(RECIPES / "baseline.sh")],
        env=clean_environment(**cluster.environ, **environ),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-6000:]
    state = read_run_state(tmp_path / "out")
    assert (state.status, state.step) == ("finished", NUM_STEPS)
    assert not (tmp_path / "log").exists()


def stages(meta) -> dict[str, str]:
    rows = {f"{name}_{stage}": value for name, value in TINY_ROWS.items() for stage in (1, 2)}
    return {"IMAGE_SIZE": "28", "CHUNK_NUM_2": "2", "META_PATH_1": str(meta), "META_PATH_2": str(meta), **rows}


def assert_both_stages_finished(output) -> None:
    for stage in ("32k", "256k"):
        state = json.loads((output / stage / "run_state.json").read_text())
        assert (state["status"], state["step"]) == ("finished", NUM_STEPS)


def test_the_second_stage_goes_on_from_the_first(submit, meta):
    job = submit(RECIPES / "two_stage.sh", **stages(meta))
    code, text = job.finish(timeout_s=600)
    assert code == 0, text[-6000:]
    assert_both_stages_finished(job.output)
    assert f"--model_name_or_path {job.output}/32k" in text


def test_both_stages_can_be_submitted_at_once(submit, cluster, meta):
    job = submit(RECIPES / "two_stage.sh", FOLLOW="0", **stages(meta))
    code, text = job.finish()
    assert code == 0, text[-6000:]
    first, second = [line for line in text.splitlines() if line.isdigit()]
    assert f"afterok:{first}" in cluster.field(second, "Dependency")
    wait_until(lambda: cluster.field(first, "JobState") == "RUNNING", "a running job")
    cluster.query("scontrol", "requeue", first)
    wait_for_end(cluster, first, second)
    assert cluster.field(first, "Restarts") == "1"
    assert_both_stages_finished(job.output)


def test_contexts_of_a_million_tokens_are_asked_over_two_nodes(cluster, checkpoint, tmp_path):
    """Here they have 30 tokens; the script is the one for 1M."""
    root = write_benchmark(tmp_path / "benchmark", "mm_niah_long/retrieval-image-test-1M", num_records=3)
    result = run_script(
        cluster,
        RECIPES / "v2pe_1m.sh",
        MODEL_PATH=str(checkpoint),
        BENCHMARK_ROOT=str(root),
        OUT=str(tmp_path / "out"),
        GPUS="0",
        NPROC="2",
        GPUS_PER_NODE="1",
        PREFILL_CHUNK_SIZE="16",
    )
    assert result.returncode == 0, result.stderr[-6000:]
    scores = json.loads((tmp_path / "out/mm_niah_long/retrieval-image-test-1M/scores.json").read_text())
    assert scores["settings"]["rope_pos_id_stride"] == 1
    assert scores["results"]["official"]["count"] == 3
