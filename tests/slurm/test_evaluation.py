"""Job arrays of evaluations on a real slurm: a task and a stride each, requeued without losing answers."""

import json
from pathlib import Path

import pytest

from tests.slurm.benchmark import run_script, write_benchmark
from tests.slurm.job import wait_for_end, wait_until
from tests.train.tiny_run import REPOSITORY

ARRAY = REPOSITORY / "scripts" / "evaluate_array.sh"
TASKS = "mm_niah/retrieval-text-test,mm_niah/retrieval-image-test"
pytestmark = pytest.mark.slow  # real jobs


def variables(folder: Path, **changes: str) -> dict[str, str]:
    """One CPU process an array task."""
    own = {"OUT": str(folder / "out"), "LOG_DIR": str(folder / "log"), "GPUS": "0", "NPROC": "1", "CPUS_PER_TASK": "1"}
    return own | changes


def read_predictions(folder: Path) -> list[dict]:
    (path,) = folder.rglob("predictions.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_array_evaluates_tasks_by_strides(cluster, checkpoint, tmp_path):
    root = write_benchmark(tmp_path / "benchmark", *TASKS.split(","), num_records=3)
    result = run_script(
        cluster,
        ARRAY,
        *(str(checkpoint), TASKS, "--data-root", str(root)),
        **variables(tmp_path, STRIDES="1 default", MOST="2"),
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stderr.count("JobState=COMPLETED") == 4
    assert len(list((tmp_path / "log").iterdir())) == 4
    folders = {path.name: path for path in (tmp_path / "out").iterdir()}
    kinds = ("retrieval-text-test", "retrieval-image-test")
    assert set(folders) == {f"mm_niah-{kind}_{stride}" for kind in kinds for stride in ("1", "default")}
    for name, folder in folders.items():
        (scores,) = folder.rglob("scores.json")
        content = json.loads(scores.read_text())
        assert content["results"]["official"]["count"] == 3
        assert content["settings"]["rope_pos_id_stride"] == (1 if name.endswith("_1") else None)


def test_an_array_task_that_fails_is_not_requeued_and_the_others_go_on(cluster, checkpoint, tmp_path):
    root = write_benchmark(tmp_path / "benchmark", "mm_niah/retrieval-text-test", num_records=2)
    result = run_script(cluster, ARRAY, *(str(checkpoint), TASKS, "--data-root", str(root)), **variables(tmp_path))
    assert result.returncode == 1
    assert result.stderr.count("JobState=COMPLETED") == result.stderr.count("JobState=FAILED") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mm_niah-retrieval-text-test"]


@pytest.mark.parametrize("how", ["signal", "requeue", "crash"])
def test_an_interrupted_array_task_goes_on_behind_its_last_answer(cluster, checkpoint, tmp_path, how):
    """`signal` is what comes before the time limit; `requeue` is a preemption; in a `crash` the node is lost."""
    num_records = 80
    root = write_benchmark(tmp_path / "benchmark", "mm_niah/retrieval-text-test", num_records=num_records)
    result = run_script(
        cluster,
        ARRAY,
        *(str(checkpoint), "mm_niah/retrieval-text-test", "--data-root", str(root)),
        **variables(tmp_path, STRIDES="1", FOLLOW="0"),
    )
    job = result.stdout.strip()
    assert job.isdigit(), result.stderr
    # Answers are appended to a file a process.
    wait_until(lambda: any(path.stat().st_size for path in (tmp_path / "out").rglob("*.jsonl")), "an answer")
    if how == "signal":
        cluster.query("scancel", "-b", "-s", "USR1", f"{job}_0")
    elif how == "requeue":
        cluster.query("scontrol", "requeue", f"{job}_0")
    else:
        node = cluster.field(job, "NodeList")
        cluster.crash(node)
        try:
            wait_until(lambda: cluster.field(job, "Restarts") == "1", "slurm to notice")
        finally:
            cluster.restore(node)
    wait_for_end(cluster, job)
    assert cluster.field(job, "Restarts") == "1"
    predictions = read_predictions(tmp_path / "out")
    assert sorted(int(line["id"]) for line in predictions) == list(range(num_records))
    (log,) = (tmp_path / "log").iterdir()
    assert "start 2: mm_niah/retrieval-text-test, stride 1" in log.read_text()
