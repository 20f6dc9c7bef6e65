"""The scripts in shell/, as `sh` and dash run them; --dry-run prints the command that would be started."""

import base64
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from internvl.train.arguments import parse_arguments
from tests.train.tiny_run import REPOSITORY, clean_environment

SHELL = REPOSITORY / "shell"
V2PE_32K = "internlm2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh"
SEVERAL_COMMANDS = ["internlm2_2b/two_stage.sh", "internlm2_2b/v2pe_1m.sh"]
SCRIPTS = sorted(str(path.relative_to(SHELL)) for path in SHELL.rglob("*.sh"))
RECIPES = [script for script in SCRIPTS if "/" in script and script not in SEVERAL_COMMANDS]
INTERPRETERS = {"sh": ["sh"], "dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}
INTERPRETERS = {name: command for name, command in INTERPRETERS.items() if shutil.which(command[0])}
VARIABLES = ("GPUS", "CHUNK_NUM", "NPROC", "BATCH_SIZE", "PER_DEVICE", "PARTITION", "OMP_", "PYTHON", "NAME", "NNODES")
VARIABLES += (
    "OUTPUT_DIR",
    "SUBMIT",
    "LOG_DIR",
    "SBATCH_",
    "SRUN_",
    "TIME_LIMIT",
    "SIGNAL_",
    "RUN_DIR",
    "FOLLOW",
    "DRY_RUN",
)


def run(script: str, *arguments: str, interpreter: str = "sh", cwd: Path = REPOSITORY, **environ: str):
    clean = {name: value for name, value in clean_environment().items() if not name.startswith(VARIABLES)}
    command = [*INTERPRETERS[interpreter], str(SHELL / script), *arguments]
    return subprocess.run(command, env={**clean, **environ}, capture_output=True, text=True, cwd=cwd, timeout=60)


def dry_run(script: str, *arguments: str, **environ: str) -> list[str]:
    result = run(script, "--dry-run", *arguments, **environ)
    assert result.returncode == 0, result.stderr
    return shlex.split(result.stdout)


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """(launcher, flags of the training entry)."""
    at = words.index("internvl/train/internvl_chat_finetune.py")
    return words[:at], words[at + 1 :]


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_posix(script, interpreter):
    assert subprocess.run([*INTERPRETERS[interpreter], "-n", str(SHELL / script)]).returncode == 0


@pytest.mark.parametrize("script", RECIPES)
def test_every_flag_of_a_recipe_exists(script, tmp_path):
    """Whatever shell reads it, from whatever folder."""
    settings = {"LAUNCHER": "slurm", "SUBMIT": "0"}
    results = [run(script, "--dry-run", interpreter=name, cwd=tmp_path, **settings) for name in INTERPRETERS]
    assert not [result.stderr for result in results if result.returncode]
    (command,) = {result.stdout for result in results}
    _, flags = split_command(shlex.split(command))
    arguments = parse_arguments(flags)
    assert arguments.data.use_packed_ds
    assert Path(REPOSITORY, arguments.data.meta_path).is_file() or script.startswith("tiny/")
    zero = json.loads((REPOSITORY / arguments.training.deepspeed).read_text())["zero_optimization"]
    assert zero["stage"] in (1, 2, 3)


def test_the_recipes_differ_where_they_say():
    def flags(script, **environ):
        return parse_arguments(split_command(dry_run(script, LAUNCHER="none", **environ))[1])

    baseline, v2pe = flags("internlm2_2b/baseline.sh"), flags(V2PE_32K)
    assert (baseline.data.rope_pos_id_version, v2pe.data.rope_pos_id_version) == ("default", "v2pe_rnd")
    assert v2pe.training.output_dir == f"work_dirs/{Path(V2PE_32K).stem}"
    strides = flags("tiny/finetune_v2pe.sh").data.rope_pos_id_random_strides
    assert strides == [4, 2, 1, 0.5, 0.25, 0.125, 0.0625]


def test_torchrun_gets_processes_a_free_port_and_threads():
    first, second = (dry_run("tiny/pretrain.sh", LAUNCHER="pytorch", NPROC="2") for _ in range(2))
    launcher, _ = split_command(first)
    assert launcher[1:4] == ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    assert next(word for word in first if "master_port" in word) != next(w for w in second if "master_port" in w)
    fixed = dry_run("tiny/pretrain.sh", LAUNCHER="pytorch", MASTER_PORT="12345")
    assert "--master_port=12345" in fixed


def test_torchrun_on_several_machines():
    words = dry_run("launch.sh", LAUNCHER="pytorch", NNODES="2", NODE_RANK="1", MASTER_ADDR="node1", NPROC="4")
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=node1", "--nproc_per_node=4"} <= set(words)
    refused = run("launch.sh", LAUNCHER="pytorch", NNODES="2")
    assert refused.returncode == 2
    assert "export MASTER_ADDR" in refused.stderr


def test_srun_gets_only_the_options_that_are_set():
    launcher, _ = split_command(dry_run(V2PE_32K, LAUNCHER="slurm", SUBMIT="0", GPUS="16"))
    assert launcher[0] == "srun"
    assert {"--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8", "--kill-on-bad-exit=1"} <= set(launcher)
    assert not [word for word in launcher if word == "-p" or word.startswith("--quotatype")]
    full, _ = split_command(
        dry_run(
            V2PE_32K,
            LAUNCHER="slurm",
            SUBMIT="0",
            PARTITION="part",
            QUOTA_TYPE="reserved",
            SRUN_ARGS="--mem=9G --exclusive",
            CPUS_PER_TASK="3",
            GRES="",
        )
    )
    assert {"-p", "part", "--quotatype=reserved", "--mem=9G", "--exclusive", "--cpus-per-task=3", "--ntasks=32"} <= set(
        full
    )
    assert not [word for word in full if word.startswith("--gres")]


@pytest.mark.parametrize(("batch", "per_device", "gpus", "steps"), [("64", "1", "16", "4"), ("64", "2", "16", "2")])
def test_gradient_accumulation_follows_from_the_batch_size(batch, per_device, gpus, steps):
    _, flags = split_command(
        dry_run("launch.sh", LAUNCHER="slurm", GPUS=gpus, BATCH_SIZE=batch, PER_DEVICE_BATCH_SIZE=per_device)
    )
    assert flags == ["--per_device_train_batch_size", per_device, "--gradient_accumulation_steps", steps]


@pytest.mark.parametrize(
    ("environ", "match"),
    [
        ({"LAUNCHER": "slurm", "GPUS": "3", "BATCH_SIZE": "64"}, "BATCH_SIZE 64 is not a multiple of"),
        ({"LAUNCHER": "slurm", "GPUS": "8", "BATCH_SIZE": "4"}, "BATCH_SIZE 4 is not a multiple of"),
        ({"GPUS": "eight"}, "GPUS is 'eight', expected a whole number from 1"),
        ({"LAUNCHER": "slurm", "CHUNK_NUM": "0"}, "CHUNK_NUM is '0', expected a whole number from 1"),
        ({"LAUNCHER": "mpi"}, "LAUNCHER is 'mpi', expected slurm, pytorch, deepspeed or none"),
    ],
)
def test_wrong_variables_are_explained(environ, match):
    result = run("launch.sh", "--dry-run", **environ)
    assert result.returncode == 2
    assert match in result.stderr


def test_a_single_process_is_called_none_or_single():
    plain, same = (dry_run("tiny/pretrain.sh", LAUNCHER=name) for name in ("none", "single"))
    assert plain == same
    assert plain[1:3] == ["-u", "internvl/train/internvl_chat_finetune.py"]


def test_extra_flags_come_last_and_survive_quoting():
    _, flags = split_command(dry_run("tiny/pretrain.sh", "--run_name", "it's a $HOME run", LAUNCHER="none"))
    assert flags[-2:] == ["--run_name", "it's a $HOME run"]


def test_accumulation_counts_processes_that_share_a_row_once():
    """A step of 16 rows on 32 processes, 8 of which share a row: 4 groups, 4 accumulation steps."""
    common = {"LAUNCHER": "slurm", "GPUS": "32", "BATCH_SIZE": "16"}
    for words in (
        dry_run("launch.sh", CHUNK_NUM="8", **common),
        dry_run("launch.sh", "--chunk_num", "8", **common),
        dry_run("launch.sh", "--chunk_num=8", CHUNK_NUM="2", **common),
    ):
        assert words[words.index("--gradient_accumulation_steps") + 1] == "4"
        assert words[len(words) - 1 - words[::-1].index("--chunk_num") + 1] == "8"
    assert "--chunk_num" not in dry_run("launch.sh", LAUNCHER="slurm", GPUS="32")
    refused = run("launch.sh", "--dry-run", LAUNCHER="slurm", GPUS="32", CHUNK_NUM="3")
    assert refused.returncode == 2
    assert "CHUNK_NUM" in refused.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = [*SHELL.rglob("*.sh"), *(REPOSITORY / "scripts").glob("*.sh")]
    result = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_slurm_outside_of_an_allocation_submits():
    """What the job needs is asked of sbatch; the step inside takes all of it."""
    words = dry_run(V2PE_32K, LAUNCHER="slurm", GPUS="16", PARTITION="part", CPUS_PER_TASK="3", SRUN_ARGS="--label")
    assert words[:2] == ["sh", "shell/sbatch.sh"]
    at = words.index("shell/job.sh")
    batch, step = words[:at], words[at + 1 :]
    assert {"-p", "part", "--gres=gpu:8", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=3"} <= set(batch)
    assert step[0] == "srun"
    assert {"--label", "--ntasks=16", "--cpus-per-task=3", "--kill-on-bad-exit=1"} <= set(step)
    assert "-p" not in step
    inside, _ = split_command(dry_run(V2PE_32K, LAUNCHER="slurm", GPUS="16", SLURM_JOB_ID="7"))
    assert inside[0] == "srun"


def test_torchrun_under_slurm_is_one_task_a_node_that_starts_the_script_again():
    words = dry_run("tiny/pretrain.sh", LAUNCHER="pytorch", SUBMIT="1", GPUS="16", CPUS_PER_TASK="2", CHUNK_NUM="2")
    at = words.index("shell/job.sh")
    assert {"--ntasks=2", "--ntasks-per-node=1", "--gres=gpu:8", "--cpus-per-task=16"} <= set(words[:at])
    assert words[words.index("sh", at) : words.index("sh", at) + 2] == ["sh", "shell/launch.sh"]
    assert "--gradient_accumulation_steps" not in words


def test_the_deepspeed_launcher_gets_processes_and_a_port():
    launcher, flags = split_command(dry_run("tiny/pretrain.sh", LAUNCHER="deepspeed", NPROC="2"))
    assert launcher[1:3] == ["-m", "deepspeed.launcher.launch"]
    (world,) = [word.partition("=")[2] for word in launcher if word.startswith("--world_info=")]
    assert json.loads(base64.urlsafe_b64decode(world)) == {"node0": [0, 1]}
    assert parse_arguments(["--local_rank=1", *flags]).training.local_rank == 1


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there are GPUs")
def test_a_cpu_has_as_many_processes_as_share_a_row():
    assert "--nproc_per_node=4" in dry_run("launch.sh", CHUNK_NUM="4")
    assert "--nproc_per_node=1" in dry_run("launch.sh")
    assert "--nproc_per_node=2" in dry_run("launch.sh", CHUNK_NUM="2", NPROC="2")
    assert "--nproc_per_node=8" in dry_run("launch.sh", CHUNK_NUM="2", GPUS="8")


def test_the_launch_scripts_export_what_torch_reads_at_its_start(tmp_path):
    """Segments that grow with long rows, and a record of collectives that time out; what is set already stays."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nenv\n")
    python.chmod(0o755)
    common = {"PYTHON": str(python), "LAUNCHER": "none", "SUBMIT": "0"}
    for script, arguments in (
        (SHELL / "launch.sh", []),
        (REPOSITORY / "scripts" / "evaluate.sh", [str(tmp_path), "x"]),
    ):
        lines = run(str(script), *arguments, **common, TORCH_FR_BUFFER_SIZE="7").stdout.splitlines()
        assert {
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            "TORCH_NCCL_DUMP_ON_TIMEOUT=1",
            "TORCH_FR_BUFFER_SIZE=7",
        } <= set(lines)
