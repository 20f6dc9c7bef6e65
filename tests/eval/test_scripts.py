"""The shell scripts: which command they end in. A stand-in for the interpreter writes its arguments down."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIX = ",".join(
    f"mm_niah/{kind}-{needle}-test" for needle in ("text", "image") for kind in ("retrieval", "counting", "reasoning")
)


@pytest.fixture
def run_script(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("python", "srun"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\n')
        tool.chmod(0o755)

    def run(script, *arguments, srun=False, **environment):
        path = os.environ["PATH"]
        variables = {"PATH": f"{tools}:{path}" if srun else path, "CUDA_VISIBLE_DEVICES": "", **environment}
        variables.setdefault("PYTHON", str(tools / "python"))
        done = subprocess.run(
            ["sh", str(ROOT / "scripts" / script), *arguments],
            env=variables, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def value_of(command, name):
    return command[command.index(name) + 1]


def test_mmniah_runs_six_tasks_into_the_upstream_folder(run_script):
    code, command, _ = run_script("evaluate_mmniah.sh", "my model/", "--limit", "2 3")
    assert code == 0
    assert command[:3] == ["python", "-m", "eval.run"]
    assert value_of(command, "--checkpoint") == "my model"
    assert sorted(value_of(command, "--tasks").split(",")) == sorted(SIX.split(","))
    assert value_of(command, "--out") == "my model/eval_mm_niah"
    assert command[-2:] == ["--limit", "2 3"]


@pytest.mark.parametrize(
    ("stride", "arguments", "folder"),
    [
        (None, ["--rope_pos_id_stride", "64"], "eval_mm_niah_64"),
        (None, ["--rope_pos_id_stride=1/16"], "eval_mm_niah_1-16"),
        ("64", ["--rope_pos_id_stride", "64"], "eval_mm_niah_64"),
        ("64", [], "eval_mm_niah_64"),
        ("-1", ["--rope_pos_id_stride", "64"], "eval_mm_niah"),
        (None, ["--rope_pos_id_stride", "64", "--rope_scaling", "yarn:4"], "eval_mm_niah_64_yarn-4"),
        (None, ["--rope_scaling=linear:2"], "eval_mm_niah_linear-2"),
        (None, ["--rope_scaling", '{"type": "yarn", "factor": 4}'], "eval_mm_niah"),
        ("-1", [], "eval_mm_niah"),
    ],
)
def test_stride_names_the_folder(run_script, stride, arguments, folder):
    environment = {} if stride is None else {"STRIDE": stride}
    _, command, _ = run_script("evaluate_mmniah.sh", "ckpt", *arguments, **environment)
    assert value_of(command, "--out") == f"ckpt/{folder}"


@pytest.mark.parametrize("form", [["--rope_pos_id_stride", "16"], ["--rope_pos_id_stride=16"]])
def test_stride_and_argument_may_not_disagree(run_script, form):
    code, command, error = run_script("evaluate_mmniah.sh", "ckpt", *form, STRIDE="64")
    assert (code, command) == (2, [])
    assert "STRIDE is 64 but --rope_pos_id_stride is 16" in error


def test_tasks_and_out_can_be_chosen(run_script):
    tasks = "retrieval-text-val counting-image-test,mm_niah/reasoning-text-test"
    _, command, _ = run_script("evaluate_mmniah.sh", "ckpt", TASKS=tasks, OUT="else where")
    assert value_of(command, "--tasks") == (
        "mm_niah/retrieval-text-val,mm_niah/counting-image-test,mm_niah/reasoning-text-test"
    )
    assert value_of(command, "--out") == "else where"


@pytest.mark.parametrize(
    "environment", [{"GPUS": "4"}, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"NPROC": "4"}, {"GPUS": "0", "NPROC": "4"}]
)
def test_several_processes_run_under_torchrun(run_script, environment):
    code, command, _ = run_script("evaluate_mmniah.sh", "ckpt", **environment)
    assert code == 0
    assert command[1:4] == ["-m", "torch.distributed.run", "--standalone"]
    assert "--nproc_per_node=4" in command
    assert command[5:7] == ["-m", "eval.run"]


def test_a_partition_means_slurm(run_script):
    _, command, _ = run_script(
        "evaluate_mmniah.sh", "ckpt", srun=True, PARTITION="gpu", GPUS="16", SRUN_ARGS="--quiet --exclusive"
    )
    assert command[0] == "srun"
    assert {"--partition=gpu", "--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8", "--quiet", "--exclusive"} < set(
        command
    )
    assert command[command.index("--exclusive") + 2].endswith("/python")


def test_cpu_tasks_on_slurm_ask_for_no_gpu(run_script):
    _, command, _ = run_script("evaluate.sh", "ckpt", "mm_niah", srun=True, PARTITION="cpu", GPUS="0", NPROC="2")
    assert "--ntasks=2" in command
    assert not any(argument.startswith("--gres") for argument in command)


def test_a_partition_without_srun_runs_here(run_script, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for tool in ("sh", "dirname", "tr", "grep"):
        (plain / tool).symlink_to(shutil.which(tool))
    _, command, _ = run_script("evaluate.sh", "ckpt", "mm_niah", PARTITION="gpu", PATH=str(plain))
    assert command[:3] == ["python", "-m", "eval.run"]


@pytest.mark.parametrize(("name", "value"), [("GPUS", "two"), ("NPROC", "0"), ("GPUS", "-1"), ("GPUS_PER_NODE", "0")])
def test_wrong_counts_are_refused(run_script, name, value):
    code, command, error = run_script("evaluate.sh", "ckpt", "mm_niah", **{name: value})
    assert (code, command) == (2, [])
    assert f"error: {name} must be" in error


@pytest.mark.parametrize(("script", "arguments"), [("evaluate.sh", ["ckpt"]), ("evaluate_mmniah.sh", [])])
def test_missing_arguments_show_the_usage(run_script, script, arguments):
    code, _, error = run_script(script, *arguments)
    assert code == 2
    assert "usage:" in error


def test_the_whole_way_through_the_script(checkpoint, benchmark_root, record, tmp_path):
    benchmark_root.write("retrieval-text", [record(i) for i in range(2)])
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "evaluate_mmniah.sh"), str(checkpoint), "--data-root", str(benchmark_root.root)],
        env={**os.environ, "TASKS": "retrieval-text-test", "OUT": str(tmp_path / "out"), "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "mm_niah" / "retrieval-text-test" / "scores.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "environment", "num_processes"),
    [
        (["--ring_attn"], {"GPUS": "8"}, 8),
        ([], {"GPUS": "8"}, 2),
        (["--ring_attn"], {"NPROC": "4"}, 4),
    ],
)
def test_gpus_per_task_are_processes_with_ring_attn_and_gpus_of_one_without(
    run_script, arguments, environment, num_processes
):
    code, command, _ = run_script("evaluate_mmniah.sh", "ckpt", *arguments, GPUS_PER_TASK="4", **environment)
    assert code == 0
    assert f"--nproc_per_node={num_processes}" in command
    assert value_of(command, "--gpus_per_task") == "4"


def test_gpus_per_task_on_slurm(run_script):
    environment = {"PARTITION": "gpu", "GPUS": "16", "GPUS_PER_TASK": "4"}
    _, command, _ = run_script("evaluate.sh", "ckpt", "mm_niah", srun=True, **environment)
    assert {"--ntasks=4", "--ntasks-per-node=2", "--gres=gpu:8"} < set(command)
    _, command, _ = run_script("evaluate.sh", "ckpt", "mm_niah", "--ring_attn", srun=True, **environment)
    assert {"--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8"} < set(command)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"GPUS": "6", "GPUS_PER_TASK": "4"}, "GPUS_PER_TASK is 4, which does not divide the 6 GPUs"),
        ({"GPUS": "6", "GPUS_PER_TASK": "0"}, "GPUS_PER_TASK must be"),
        ({"GPUS": "16", "GPUS_PER_TASK": "16", "PARTITION": "gpu"}, "a node has 8 GPUs"),
    ],
)
def test_tasks_that_do_not_fit_the_gpus_are_refused(run_script, environment, message):
    code, command, error = run_script("evaluate.sh", "ckpt", "mm_niah", srun=True, **environment)
    assert (code, command) == (2, [])
    assert message in error
