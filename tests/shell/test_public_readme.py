"""The README of the public V2PE code, section by section: its commands as they stand, on data in its layout.

Tiny files and a tiny checkpoint take the place of the real ones; recipes are changed by environment variables only. The
commands run in the repository, as the README has them, or in another working directory that holds the data.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.eval.conftest import checkpoint
from tests.public_layout import lay_out_public_data
from tests.train import tiny_run
from tests.warm_python import warm_python

__all__ = ["checkpoint"]

REPOSITORY = tiny_run.REPOSITORY
RECIPES = "shell/internlm2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe"
POSITIONS = "--rope_pos_id_version v2pe_fix --rope_pos_id_stride 64"
# As the README writes them; <checkpoint> is what its reader fills in.
TRAINING = {length: f"PARTITION='your partition' GPUS=32 sh {RECIPES}_{length}.sh" for length in ("32k", "256k")}
EVALUATION = {
    "auto": f"STRIDE=64 sh scripts/evaluate_auto.sh <checkpoint> {POSITIONS}",
    "milebench": f"STRIDE=64 sh scripts/evaluate_milebench.sh <checkpoint> {POSITIONS}",
    "mmniah": f"STRIDE=64 sh scripts/evaluate_mmniah.sh <checkpoint> {POSITIONS}",
    "mmniah_long": f"STRIDE=64 sh scripts/evaluate_mmniah_long.sh <checkpoint> {POSITIONS}",
    **{
        f"longvqa_{group}": f"STRIDE=64 GROUP={group} GPUS_PER_TASK={gpus} sh scripts/evaluate_longvqa.sh <checkpoint> "
        f"{POSITIONS}"
        for group, gpus in {32: 1, 40: 2, 48: 2, 56: 4, 64: 4}.items()
    },
}
FOLDERS = {"auto": "eval_origin_64", "milebench": "eval_milebench_64"} | dict.fromkeys(
    ("mmniah", "mmniah_long"), "eval_mm_niah_64"
)
NUM_TASKS = {"auto": 10, "milebench": 29, "mmniah": 6, "mmniah_long": 4}  # MMMU is downloaded, so it is not laid out
SHELLS = [name for name in ("sh", "bash") if shutil.which(name)]
# On a CPU, a few tokens per row, as everything in the tests.
TINY_ROWS = {"IMAGE_SIZE": "28", "MAX_TOKENS": "640", "MAX_TILES": "32", "MAX_STEPS": "1"}


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A working directory with data/ and dataset/ as the README has them."""
    root = tmp_path_factory.mktemp("public")
    lay_out_public_data(root)
    return root


def run(command: str, *, shell: str = "sh", cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command line of the README, whose scripts are those of the repository wherever it is started."""
    line = re.sub(r"\bsh (shell|scripts)/", rf"{shell} {shlex.quote(str(REPOSITORY))}/\1/", command)
    clean = tiny_run.clean_environment(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", PYTHON=warm_python(), **environ)
    return subprocess.run([shell, "-c", line], env=clean, cwd=cwd, capture_output=True, text=True, timeout=1200)


def evaluate(name: str, checkpoint: Path, cwd: Path, *arguments: str, **environ: str):
    line = EVALUATION[name].replace("<checkpoint>", shlex.quote(str(checkpoint)))
    return run(" ".join([line, *arguments]), cwd=cwd, **environ)


def copy_checkpoint(checkpoint: Path, folder: Path) -> Path:
    """Of its own, because results go into it; linked, so that it costs nothing."""
    folder.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.is_file():
            os.link(file, folder / file.name)
    return folder


def list_tasks(folder: Path) -> list[str]:
    summary = json.loads((folder / "summary.json").read_text())
    assert all(task["num_failed"] == 0 for task in summary["tasks"])
    return [task["task"] for task in summary["tasks"]]


# Model preparation


def test_the_folder_of_the_checkpoint_is_where_the_readme_puts_it():
    assert (REPOSITORY / "pretrained").is_dir()
    result = run(TRAINING["32k"].replace("PARTITION='your partition' ", "") + " --dry-run", cwd=REPOSITORY)
    assert "--model_name_or_path pretrained/InternVL2-2B" in result.stdout


# Supervised fine-tuning


def test_every_training_annotation_of_the_data_is_read_by_a_recipe(public):
    names = set()
    for length in ("32k", "256k"):
        meta = json.loads((REPOSITORY / f"shell/data/annotation_train_{length}.json").read_text())
        names |= {source["annotation"] for source in meta.values()}
        assert all((public / "dataset" / source["root"]).is_dir() for source in meta.values())
    assert all((public / "dataset" / name).is_file() for name in names)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("length", TRAINING)
def test_a_recipe_with_the_placeholder_says_what_to_fill_in(length, shell, tmp_path):
    for cwd in (REPOSITORY, tmp_path):
        result = run(TRAINING[length], shell=shell, cwd=cwd)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error: PARTITION is 'your partition', expected the name of a slurm partition")
        assert result.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("srun") is not None, reason="slurm is installed")
@pytest.mark.parametrize("length", TRAINING)
def test_a_recipe_with_a_partition_needs_slurm(length, tmp_path):
    command = TRAINING[length].replace("your partition", "gpu")
    result = run(command, cwd=tmp_path, MODEL_PATH=str(tmp_path))
    assert result.returncode == 2
    assert "PARTITION=gpu asks for slurm, but srun is not installed here" in result.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_recipes_ask_slurm_for_32_gpus(shell, tmp_path):
    for length, command in TRAINING.items():
        result = run(f"{command.replace('your partition', 'gpu')} --dry-run", shell=shell, cwd=tmp_path)
        words = shlex.split(result.stdout)
        assert {"-p", "gpu", "--ntasks=32", "--ntasks-per-node=8", "--gres=gpu:8"} <= set(words), result.stderr
        assert any(word.endswith("256k.yaml") for word in words) == (length == "256k")


@pytest.mark.slow  # two starts of a training
@pytest.mark.parametrize(("length", "shell"), [("32k", "sh"), ("256k", "bash")])
def test_a_recipe_trains_on_the_data_as_it_lies(length, shell, public, tmp_path):
    """On this machine, where the README has a partition."""
    tiny, out = tiny_run.make_checkpoint(tmp_path / "tiny"), tmp_path / "out"
    settings = {"MODEL_PATH": str(tiny), "DATA_ROOT": str(public / "dataset"), "OUTPUT_DIR": str(out), **TINY_ROWS}
    if length == "256k":
        settings["CHUNK_NUM"] = "2"
    command = TRAINING[length].replace("PARTITION='your partition' GPUS=32 ", "")
    result = run(command, shell=shell, cwd=tmp_path, **settings)
    assert result.returncode == 0, result.stderr[-4000:]
    assert (out / "model.safetensors").is_file()
    assert json.loads((out / "summary.json").read_text())["skipped_documents"] == 0


# Evaluation


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", EVALUATION)
def test_an_evaluation_ends_in_one_command_with_the_tasks_of_its_section(name, shell, checkpoint, tmp_path):
    line = EVALUATION[name].replace("<checkpoint>", shlex.quote(str(checkpoint)))
    for cwd in (REPOSITORY, tmp_path):
        result = run(f"{line} --dry-run", shell=shell, cwd=cwd)
        assert result.returncode == 0, result.stderr
        words = shlex.split(result.stdout)
        folder = FOLDERS.get(name, "eval_longvqa_64")
        assert words[words.index("--out") + 1] == f"{checkpoint}/{folder}"
        assert words[words.index("--rope_pos_id_stride") + 1] == "64"
        if name.startswith("longvqa"):
            assert words[words.index("--tasks") + 1] == f"longvqa/*-{name.removeprefix('longvqa_')}k"
        assert "--gpus_per_task" not in words  # which needs GPUs


def test_the_general_benchmarks_are_found_where_the_readme_puts_them(public, checkpoint, tmp_path):
    own = copy_checkpoint(checkpoint, tmp_path / "my checkpoint")
    result = evaluate("auto", own, public, "--max_num", "1")
    assert result.returncode == 0, result.stderr[-4000:]
    assert len(list_tasks(own / "eval_origin_64")) == NUM_TASKS["auto"]
    assert "1 task without complete data" in result.stdout.replace("tasks", "task")
    assert "mmmu/val" in result.stdout


@pytest.mark.slow  # every benchmark, with a model
@pytest.mark.parametrize("name", [name for name in EVALUATION if name != "auto"])
def test_the_long_benchmarks_are_found_where_the_readme_puts_them(name, public, checkpoint, tmp_path):
    own = copy_checkpoint(checkpoint, tmp_path / "checkpoint")
    result = evaluate(name, own, public, "--max_num", "1", "--limit", "1")
    assert result.returncode == 0, result.stderr[-4000:]
    assert len(list_tasks(own / FOLDERS.get(name, "eval_longvqa_64"))) == NUM_TASKS.get(name, 17)
