"""Every evaluation script on two slurm nodes, a process on each, with all benchmarks in small."""

import json
import os
import subprocess

import pytest

from tests.eval.published import write_all
from tests.slurm.cluster import PARTITION
from tests.train.tiny_run import REPOSITORY, clean_environment

pytestmark = pytest.mark.slow  # minutes on two cores

NUM_TASKS = {"auto": 11, "mmniah": 6, "mmniah_long": 4, "milebench": 29, "longvqa": 17, "video": 22}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("script", NUM_TASKS)
def test_two_nodes_share_the_questions(cluster, checkpoint, root, tmp_path, script):
    settings = {"PARTITION": PARTITION, "GPUS": "0", "NPROC": "2", "GPUS_PER_NODE": "1", "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        [
            "sh", str(REPOSITORY / "scripts" / f"evaluate_{script}.sh"), str(checkpoint), "--data-root", str(root),
            "--max_num", "2", "--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1/4",
        ],
        env=clean_environment(**cluster.environ, **settings, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""),
        capture_output=True, text=True, timeout=1200, cwd=os.fspath(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + cluster.logs()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert len(summary["tasks"]) == NUM_TASKS[script]
    assert all(task["num_failed"] == 0 for task in summary["tasks"])
    parts = {path.name for path in (tmp_path / "out").rglob("parts/*.jsonl")}
    assert any("0001" in name for name in parts) or script == "mmniah_long", parts
