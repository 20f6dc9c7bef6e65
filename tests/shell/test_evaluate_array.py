"""scripts/evaluate_array.sh: what is submitted, and what an array task runs. Stand-ins write their arguments down."""

import os
import shutil
import subprocess

import pytest

from tests.train.tiny_run import REPOSITORY, clean_environment

SCRIPT = REPOSITORY / "scripts" / "evaluate_array.sh"
INTERPRETERS = [name for name in ("sh", "dash", "bash") if shutil.which(name)]


@pytest.fixture
def run(tmp_path):
    """Start the script where only the named commands are stand-ins, and no other slurm is."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("dirname", "tr", "grep", "mkdir", "date", "sleep", "sh", "paste", "sed"):
        (tools / name).symlink_to(shutil.which(name))
    for name, last in (("python", ""), ("sbatch", "echo 77")):
        (tools / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/{name}.txt\n{last}\n')
        (tools / name).chmod(0o755)

    def start(*arguments, interpreter="sh", without=(), **environ):
        for name in without:
            (tools / name).unlink()
        if arguments:
            (tmp_path / arguments[0]).mkdir(exist_ok=True)
        clean = {name: value for name, value in clean_environment().items() if name in ("HOME", "OMP_NUM_THREADS")}
        variables = {"PATH": str(tools), "PYTHON": "python", "LOG_DIR": str(tmp_path / "log"), "FOLLOW": "0", **environ}
        return subprocess.run(
            [shutil.which(interpreter), str(SCRIPT), *arguments],
            env=clean | variables, cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    start.seen = lambda name: (tmp_path / f"{name}.txt").read_text().splitlines()
    return start


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_one_array_task_for_every_task_and_stride(run, interpreter, tmp_path):
    result = run(
        "ckpt/", "mm_niah,pope vqa/*-val", "--limit", "2", interpreter=interpreter,
        PARTITION="gpu", STRIDES="1 64", MOST="3", GPUS="16", QUOTA_TYPE="spot", SBATCH_ARGS="--account=me",
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "77\n"), result.stderr
    words = run.seen("sbatch")
    assert {
        "--array=0-5%3", "--partition=gpu", "--requeue", "--open-mode=append", "--gres=gpu:8", "--ntasks=16",
        "--ntasks-per-node=8", "--quotatype=spot", "--account=me",
    } <= set(words)  # fmt: skip
    assert words[words.index(str(SCRIPT)) + 1 :] == ["ckpt/", "mm_niah,pope vqa/*-val", "--limit", "2"]


def test_cpu_array_tasks_ask_for_no_gpu(run):
    assert run("ckpt", "pope", PARTITION="cpu", GPUS="0", NPROC="2").returncode == 0
    words = run.seen("sbatch")
    assert {"--array=0-0", "--ntasks=2", "--ntasks-per-node=2"} <= set(words)
    assert not [word for word in words if word.startswith("--gres")]


@pytest.mark.parametrize(
    ("index", "tasks", "positions", "folder"),
    [
        ("0", "mm_niah/a", ["v2pe_fix", "--rope_pos_id_stride", "1/4"], "mm_niah-a_1-4"),
        ("1", "mm_niah/a", ["default"], "mm_niah-a_default"),
        ("2", "vqa/*-val", ["v2pe_fix", "--rope_pos_id_stride", "1/4"], "vqa-_-val_1-4"),
        ("3", "vqa/*-val", ["default"], "vqa-_-val_default"),
    ],
)
def test_an_array_task_takes_its_row_and_column(run, index, tasks, positions, folder):
    result = run(
        "ckpt", "mm_niah/a vqa/*-val", "--limit", "2",
        EVALUATE_ARRAY_ROOT=str(REPOSITORY), SLURM_ARRAY_TASK_ID=index, STRIDES="1/4 default", NPROC="1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    words = run.seen("python")
    assert words[words.index("--tasks") + 1] == tasks
    assert words[words.index("--out") + 1] == f"ckpt/eval_array/{folder}"
    at = words.index("--rope_pos_id_version") + 1
    assert words[at : at + len(positions)] == positions
    assert words[-2:] == ["--limit", "2"]


def test_without_strides_positions_follow_from_the_arguments(run):
    environ = {"EVALUATE_ARRAY_ROOT": str(REPOSITORY), "SLURM_ARRAY_TASK_ID": "1", "OUT": "else where"}
    assert run("ckpt", "a,b", "--rope_pos_id_version", "default", **environ).returncode == 0
    words = run.seen("python")
    assert words[words.index("--out") + 1] == "else where/b"
    assert words.count("--rope_pos_id_version") == 1


@pytest.mark.parametrize(
    ("arguments", "environ", "without", "match"),
    [
        (["ckpt"], {"PARTITION": "gpu"}, (), "usage: "),
        (["ckpt", "pope"], {}, (), "PARTITION is not set"),
        (["ckpt", " , "], {"PARTITION": "gpu"}, (), "no tasks in ' , '"),
        (
            ["ckpt", "pope"],
            {"PARTITION": "gpu"},
            ("sbatch",),
            "PARTITION=gpu asks for slurm, but sbatch is not installed here",
        ),
    ],
)
def test_what_is_missing_is_said(run, arguments, environ, without, match):
    result = run(*arguments, without=without, **environ)
    assert result.returncode == 2
    assert match in result.stderr


def test_the_code_of_a_failed_evaluation_is_the_code_of_its_array_task(run, tmp_path):
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 3\n")
    environ = {"EVALUATE_ARRAY_ROOT": str(REPOSITORY), "SLURM_ARRAY_TASK_ID": "0"}
    assert run("ckpt", "pope", **environ).returncode == 3
    assert sorted(os.listdir(tmp_path)) == ["bin", "ckpt"]
