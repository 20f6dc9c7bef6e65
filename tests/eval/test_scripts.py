"""The shell scripts: which command they end in. A stand-in for the interpreter writes its arguments down."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from eval.run.__main__ import main
from eval.tasks.mlvu import CHOICE_FILES
from eval.tasks.registry import select_tasks
from tests.eval.published import write_all, write_pope, write_scienceqa
from tests.warm_python import warm_python

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
        if arguments and not arguments[0].startswith("-"):
            (tmp_path / arguments[0]).mkdir(exist_ok=True)
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


def test_a_partition_without_srun_is_an_error(run_script, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for tool in ("sh", "dirname", "tr", "grep"):
        (plain / tool).symlink_to(shutil.which(tool))
    code, command, error = run_script("evaluate.sh", "ckpt", "mm_niah", PARTITION="gpu", PATH=str(plain))
    assert (code, command) == (2, [])
    assert "error: PARTITION=gpu asks for slurm, but srun is not installed here" in error


def test_without_a_partition_a_note_says_where_it_runs(run_script):
    _, _, error = run_script("evaluate.sh", "ckpt", "mm_niah", NPROC="2")
    assert error.startswith("note: evaluating on this machine (")
    assert "on its CPU, processes: 2" in error
    _, _, error = run_script("evaluate.sh", "ckpt", "mm_niah", GPUS="4")
    assert "on 4 of its GPUs, processes: 4" in error
    assert run_script("evaluate.sh", "ckpt", "mm_niah", srun=True, PARTITION="gpu")[2] == ""


@pytest.mark.parametrize(("name", "value"), [("GPUS", "two"), ("NPROC", "0"), ("GPUS", "-1"), ("GPUS_PER_NODE", "0")])
def test_wrong_counts_are_refused(run_script, name, value):
    code, command, error = run_script("evaluate.sh", "ckpt", "mm_niah", **{name: value})
    assert (code, command) == (2, [])
    assert f"error: {name} is '{value}', expected a whole number from" in error


@pytest.mark.parametrize(("script", "arguments"), [("evaluate.sh", ["ckpt"]), ("evaluate_mmniah.sh", [])])
def test_missing_arguments_show_the_usage(run_script, script, arguments):
    code, _, error = run_script(script, *arguments)
    assert code == 2
    assert "usage:" in error


PAGE_TASKS = "mmlongbench_doc/test,longdocurl/test,slidevqa/test,dude/val"
MLVU_CHOICES = ",".join(f"mlvu/{name}" for name in (*CHOICE_FILES, "test"))
SUITES = {
    "evaluate_auto.sh": ("eval_origin", None),
    "evaluate_mmniah.sh": ("eval_mm_niah", None),
    "evaluate_mmniah_long.sh": ("eval_mm_niah", "mm_niah_long/retrieval-image-test-*"),
    "evaluate_milebench.sh": ("eval_milebench", "milebench"),
    "evaluate_longvqa.sh": ("eval_longvqa", "longvqa/*-32k"),
    "evaluate_video.sh": ("eval_video", "mvbench,videomme"),
    "evaluate_long_video.sh": ("eval_long_video", f"longvideobench,{MLVU_CHOICES},lvbench,vnbench,videomme_v2"),
    "evaluate_documents.sh": (
        "eval_documents",
        f"{PAGE_TASKS}," + ",".join(f"mmlongbench/*-{length}k" for length in (8, 16, 32, 64, 128)),
    ),
}
every_script = pytest.mark.parametrize("script", SUITES)


@every_script
def test_a_script_evaluates_its_tasks_that_have_data_into_the_folder_of_the_stride(run_script, script):
    folder, tasks = SUITES[script]
    arguments = ["--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "64"]
    code, command, _ = run_script(script, "a model/", *arguments, "--limit", "2 3")
    assert code == 0
    assert value_of(command, "--checkpoint") == "a model"
    assert value_of(command, "--out") == f"a model/{folder}_64"
    assert "--skip_missing" in command
    position = command.index("--rope_pos_id_version")
    assert command[position : position + 6] == [*arguments, "--limit", "2 3"]
    if tasks is not None:
        assert value_of(command, "--tasks") == tasks
    names = {task.name for task in select_tasks(value_of(command, "--tasks"))}
    assert (
        len(names)
        == {
            "auto": 11,
            "mmniah": 6,
            "mmniah_long": 4,
            "milebench": 29,
            "longvqa": 17,
            "video": 22,
            "long_video": 17,
            "documents": 99,
        }[script.removeprefix("evaluate_").removesuffix(".sh")]
    )


@every_script
def test_no_script_lets_stride_and_argument_disagree(run_script, script):
    code, command, error = run_script(script, "ckpt", "--rope_pos_id_stride=16", STRIDE="64")
    assert (code, command) == (2, [])
    assert "STRIDE is 64 but --rope_pos_id_stride is 16" in error


@every_script
def test_every_script_runs_on_slurm_and_shows_its_usage(run_script, script):
    environment = {"PARTITION": "gpu", "GPUS": "16", "QUOTA_TYPE": "reserved"}
    _, command, _ = run_script(script, "ckpt", "--limit", "1", srun=True, **environment)
    assert command[0] == "srun"
    assert {"--partition=gpu", "--ntasks=16", "--quotatype=reserved", "--limit"} < set(command)
    for arguments in ([], ["--limit", "1"]):
        code, command, error = run_script(script, *arguments)
        assert (code, command) == (2, [])
        assert "usage:" in error


@pytest.mark.parametrize(
    ("script", "tasks", "expected"),
    [
        ("evaluate_auto.sh", "pope,mmmu/val vqa-chartqa-test", "pope,mmmu/val,vqa-chartqa-test"),
        ("evaluate_mmniah_long.sh", "*-1M", "mm_niah_long/*-1M"),
        ("evaluate_mmniah_long.sh", "*", "mm_niah_long/*"),
        ("evaluate_milebench.sh", "ALFRED milebench/TQA-combined-1", "milebench/ALFRED,milebench/TQA-combined-1"),
        ("evaluate_longvqa.sh", "chartqa,gqa-64k", "longvqa/chartqa-32k,longvqa/gqa-64k"),
        ("evaluate_video.sh", "mvbench/action_count", "mvbench/action_count"),
        ("evaluate_long_video.sh", "lvbench/test-128frames", "lvbench/test-128frames"),
    ],
)
def test_tasks_that_are_asked_for_must_have_their_data(run_script, script, tasks, expected):
    code, command, _ = run_script(script, "ckpt", TASKS=tasks)
    assert code == 0
    assert value_of(command, "--tasks") == expected
    assert "--skip_missing" not in command


@pytest.mark.parametrize("judge", [["--judge", "http://x"], ["--judge=http://x"]])
def test_tasks_for_a_judge_are_asked_where_there_is_one(run_script, judge):
    _, command, error = run_script("evaluate_long_video.sh", "ckpt", *judge, "--judge_model", "m")
    assert value_of(command, "--tasks").endswith("mlvu/sub_scene,mlvu/summary")
    assert "need a judge" not in error
    _, command, error = run_script("evaluate_long_video.sh", "ckpt", "--judge_requests", "2")
    assert "summary" not in value_of(command, "--tasks")
    assert "mlvu/sub_scene mlvu/summary need a judge and are left out" in error
    _, command, error = run_script("evaluate_long_video.sh", "ckpt", TASKS="mlvu/summary")
    assert (value_of(command, "--tasks"), "left out" in error) == ("mlvu/summary", False)


def test_longvqa_takes_one_or_several_lengths(run_script):
    _, command, _ = run_script("evaluate_longvqa.sh", "ckpt", GROUP="40,64")
    assert value_of(command, "--tasks") == "longvqa/*-40k,longvqa/*-64k"
    _, command, _ = run_script("evaluate_longvqa.sh", "ckpt", GROUP="32 48", TASKS="chartqa")
    assert value_of(command, "--tasks") == "longvqa/chartqa-32k,longvqa/chartqa-48k"
    code, command, error = run_script("evaluate_longvqa.sh", "ckpt", GROUP="33")
    assert (code, command) == (2, [])
    assert "GROUP is '33', expected 32, 40, 48, 56 or 64" in error


def test_documents_take_one_or_several_lengths(run_script):
    _, command, _ = run_script("evaluate_documents.sh", "ckpt", GROUP="8,128")
    assert value_of(command, "--tasks") == f"{PAGE_TASKS},mmlongbench/*-8k,mmlongbench/*-128k"
    code, command, error = run_script("evaluate_documents.sh", "ckpt", GROUP="4")
    assert (code, command) == (2, [])
    assert "GROUP is '4', expected 8, 16, 32, 64 or 128" in error


def test_long_prompts_are_shared_by_all_processes(run_script):
    _, command, _ = run_script("evaluate_mmniah_long.sh", "ckpt", GPUS="64")
    assert "--nproc_per_node=64" in command
    assert "--ring_attn" in command
    assert "--gpus_per_task" not in command
    _, command, _ = run_script("evaluate_mmniah_long.sh", "ckpt", GPUS="64", GPUS_PER_TASK="8")
    assert value_of(command, "--gpus_per_task") == "8"
    assert "--nproc_per_node=64" in command


def test_a_stride_without_its_argument_is_pointed_out(run_script):
    code, _, error = run_script("evaluate_auto.sh", "ckpt", STRIDE="64")
    assert code == 0
    assert "STRIDE=64 names the result folder only" in error
    for arguments, environment in (([], {}), ([], {"STRIDE": "-1"}), (["--rope_pos_id_stride", "1"], {"STRIDE": "1"})):
        assert "STRIDE" not in run_script("evaluate_auto.sh", "ckpt", *arguments, **environment)[2]


def test_the_general_benchmarks_are_those_of_the_published_table(run_script):
    _, command, _ = run_script("evaluate_auto.sh", "ckpt")
    names = [task.name for task in select_tasks(value_of(command, "--tasks"))]
    assert names == [
        *("vqa/chartqa-test-human", "vqa/chartqa-test-augmented", "vqa/docvqa-val", "vqa/ai2d-test", "vqa/infovqa-val"),
        *("scienceqa/test", "pope/test", "mmmu/val", "mmbench/dev-en", "mmbench/test-en", "seed/image"),
    ]
    _, command, _ = run_script("evaluate_auto.sh", "ckpt", TASKS="all")
    assert value_of(command, "--tasks") == "vqa,scienceqa,pope,seed,mmmu,mmbench,ccbench"
    assert "--skip_missing" in command


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("mmmu-val", ["mmmu/val"]),
        ("vqa-chartqa-test", ["vqa/chartqa-test-human", "vqa/chartqa-test-augmented"]),
        ("vqa-textvqa-val", ["vqa/textvqa-val"]),
        ("scienceqa", ["scienceqa/test"]),
        ("ccbench-dev", ["ccbench/dev"]),
        ("mmbench-test-en", ["mmbench/test-en"]),
    ],
)
def test_names_of_upstream_are_understood(name, tasks):
    assert [task.name for task in select_tasks(name)] == tasks


def test_the_whole_way_through_the_script(checkpoint, benchmark_root, record, tmp_path):
    benchmark_root.write("retrieval-text", [record(i) for i in range(2)])
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "evaluate_mmniah.sh"), str(checkpoint), "--data-root", str(benchmark_root.root)],
        env={
            **os.environ, "PYTHON": warm_python(), "TASKS": "retrieval-text-test", "OUT": str(tmp_path / "out"),
            "CUDA_VISIBLE_DEVICES": "",
        },
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


def test_without_gpus_no_layers_are_spread(run_script):
    code, command, error = run_script("evaluate_longvqa.sh", "ckpt", GROUP="40", GPUS_PER_TASK="2")
    assert (code, "--gpus_per_task" in command) == (0, False)
    assert "note: GPUS_PER_TASK=2 has no effect without GPUs" in error


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
        ({"GPUS": "6", "GPUS_PER_TASK": "0"}, "GPUS_PER_TASK is '0'"),
        ({"GPUS": "16", "GPUS_PER_TASK": "16", "PARTITION": "gpu"}, "a node has 8 GPUs"),
    ],
)
def test_tasks_that_do_not_fit_the_gpus_are_refused(run_script, environment, message):
    code, command, error = run_script("evaluate.sh", "ckpt", "mm_niah", srun=True, **environment)
    assert (code, command) == (2, [])
    assert message in error


@pytest.fixture(scope="module")
def published_root(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("published"))


def start(script, checkpoint, root, out, *arguments, **environment):
    return subprocess.Popen(
        ["sh", str(ROOT / "scripts" / script), str(checkpoint), "--data-root", str(root), "--max_num", "2", *arguments],
        env={**os.environ, "PYTHON": warm_python(), "OUT": str(out), "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow  # all benchmarks; minutes on two cores. Those of documents: tests/eval/tasks/test_document_runs.py
@pytest.mark.parametrize("script", [script for script in SUITES if script != "evaluate_documents.sh"])
def test_every_benchmark_runs_end_to_end(script, checkpoint, published_root, tmp_path):
    process = start(script, checkpoint, published_root, tmp_path, "--rope_pos_id_version", "v2pe_fix",
                    "--rope_pos_id_stride", "1/4", GROUP="32 64", STRIDE="1/4")  # fmt: skip
    output, error = process.communicate(timeout=1200)
    assert process.returncode == 0, error
    summary = json.loads((tmp_path / "summary.json").read_text())
    names = [task["task"] for task in summary["tasks"]]
    assert (
        len(names)
        == {"auto": 11, "mmniah": 6, "mmniah_long": 4, "milebench": 29, "longvqa": 34, "video": 22, "long_video": 17}[
            script.removeprefix("evaluate_").removesuffix(".sh")
        ]
    )
    for task in summary["tasks"]:
        assert task["num_failed"] == 0
        lines = (tmp_path / task["task"] / "predictions.jsonl").read_text().splitlines()
        assert len(lines) >= 2
        assert all(json.loads(line)["num_tiles"] >= 1 or "counting" in task["task"] for line in lines)
        assert task["task"] in output


def test_data_that_is_missing_does_not_end_the_others(run_script, checkpoint, tmp_path, capsys, caplog):
    """The command that the script ends in, run here."""
    write_pope(tmp_path)
    write_scienceqa(tmp_path)
    (tmp_path / "scienceqa/pictures/1.png").unlink()
    arguments = [str(checkpoint), "--data-root", str(tmp_path), "--device", "cpu"]
    _, command, _ = run_script("evaluate_auto.sh", *arguments, OUT=str(tmp_path / "out"))
    assert main(command[command.index("eval.run") + 1 :]) == 0
    assert (tmp_path / "out/pope/test/scores.json").is_file()
    for shown in (capsys.readouterr().out, caplog.text):  # at the end, and at the start
        assert "10 tasks without complete data" in shown
        assert f"mmmu/val: missing: {tmp_path}/MMMU/validation.jsonl; get it from https://" in shown
        assert f"scienceqa/test: incomplete: 2 questions, 2 pictures or videos, 1 missing, first {tmp_path}" in shown
    _, command, _ = run_script("evaluate_auto.sh", *arguments, OUT=str(tmp_path / "other"), TASKS="pope scienceqa")
    assert main(command[command.index("eval.run") + 1 :]) == 2
    assert "image not found" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow  # four starts of the interpreter
def test_a_script_killed_at_any_moment_continues(checkpoint, published_root, tmp_path):
    arguments = ("evaluate_milebench.sh", checkpoint, published_root)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(*arguments, whole)
    assert process.wait(timeout=600) == 0, process.stderr.read()
    num_all = count_answers(whole)
    wanted = random.randrange(1, num_all - 5)
    process = start(*arguments, broken, NPROC="2")
    while count_answers(broken) < wanted:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert wanted <= count_answers(broken) < num_all
    process = start(*arguments, broken)
    assert process.wait(timeout=600) == 0, process.stderr.read()
    for path in whole.rglob("predictions.jsonl"):
        one, other = (read_answers(file) for file in (path, broken / path.relative_to(whole)))
        assert one == other


def count_answers(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("**/parts/*.jsonl"))


def read_answers(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["id"], line["response"], line["last_position"]) for line in lines]
