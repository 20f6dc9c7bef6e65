"""What all scripts have in common: --help, --dry-run, and one rule for their variables."""

import os
import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.train.tiny_run import REPOSITORY, clean_environment

SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for part in ("shell", "scripts", "studies")
    for path in (REPOSITORY / part).rglob("*.sh")
)
INTERPRETERS = [name for name in ("dash", "bash") if shutil.which(name)]
SHOWN = {  # arguments and variables with which a script shows what it would run
    "scripts/evaluate.sh": (["ckpt", "pope"], {}),
    "scripts/evaluate_array.sh": (["ckpt", "pope"], {"PARTITION": "gpu"}),
    "scripts/gather_wheels.sh": (["wheels"], {}),
    "scripts/suite.sh": (["vqa", "eval", "docvqa-val", "ckpt"], {}),
    "shell/recipe.sh": (["internvl2_2b_32k"], {}),
    "shell/job.sh": (["srun", "echo"], {}),
    "shell/sbatch.sh": (["shell/job.sh", "srun"], {}),
    **{
        f"scripts/evaluate_{name}.sh": (["ckpt"], {})
        for name in ("auto", "documents", "long_video", "longvqa", "milebench", "mmniah", "mmniah_long", "video")
    },
    "studies/miniature/run.sh": ([], {"SEEDS": "0"}),  # of five that differ in their number
}
COUNTS = "GPUS GPUS_PER_NODE NNODES NPROC CHUNK_NUM BATCH_SIZE PER_DEVICE_BATCH_SIZE CPUS_PER_TASK MAX_STEPS SAVE_STEPS"
OTHERS = "LAUNCHER MASTER_ADDR PARTITION QUOTA_TYPE GRES TIME_LIMIT SUBMIT FOLLOW PYTHON LEARNING_RATE BF16"
NO_COUNT = ["09", "1e3", "-1", "9" * 10, "9" * 5000, "1 2", "*", "a\nb", "'", '"', "$(touch oops)", "`x`", "½", "1.5"]
RECIPE = "shell/internlm2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh"


def start(script, *arguments, interpreter="sh", cwd, **environ):
    used = re.compile(rf"({'|'.join([*COUNTS.split(), *OTHERS.split()])}|CUDA_VISIBLE_DEVICES|DRY_RUN)\Z")
    clean = {name: value for name, value in clean_environment(CUDA_VISIBLE_DEVICES="").items() if not used.match(name)}
    command = [interpreter, str(REPOSITORY / script), *arguments]
    return subprocess.run(command, env=clean | environ, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_head_of_the_script_and_runs_nothing(script, tmp_path):
    head = re.match(r"#!/bin/sh\n((?:#.*\n)+)", (REPOSITORY / script).read_text())
    assert head is not None
    text = re.sub(r"^# ?", "", head[1], flags=re.MULTILINE)
    for interpreter in INTERPRETERS:
        for arguments in (["--help"], ["-h"], ["ckpt", "--help"], ["--dry-run", "--help"]):
            result = start(script, *arguments, interpreter=interpreter, cwd=tmp_path, GPUS="none")
            assert (result.returncode, result.stdout, result.stderr) == (0, text, "")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "shell/prelude.sh"])
def test_a_dry_run_prints_commands_and_runs_nothing(script, tmp_path):
    arguments, environ = SHOWN.get(script, ([], {}))
    fixed = {"MASTER_PORT": "12345", "WORK": str(tmp_path / "work"), "OUTPUT_DIR": str(tmp_path / "out")}
    results = [
        start(script, *words, interpreter=interpreter, cwd=tmp_path, **fixed, **environ)
        for interpreter in INTERPRETERS
        for words in (["--dry-run", *arguments], [*arguments, "--dry-run"])
    ]
    assert [result.returncode for result in results] == [0] * len(results), results[0].stderr
    (shown,) = {re.sub(r"\b\d+ s\b", "", result.stdout) for result in results}
    commands = ("internvl/train/internvl_chat_finetune.py", "eval.run", "sbatch", "srun", "pip")
    assert any(word in commands for word in shlex.split(shown, comments=False))
    assert "--dry-run" not in shown
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("script", [RECIPE, "shell/launch.sh", "scripts/evaluate.sh"])
def test_a_count_is_a_plain_number_or_one_line_says_what_is_expected(script, interpreter, tmp_path):
    """Of all pairs of a variable and a value, some."""
    read = (REPOSITORY / script).read_text() + ("" if script == "shell/launch.sh" else "CPUS_PER_TASK")
    names = [name for name in COUNTS.split() if re.search(rf"check_counts .*\b{name}\b|CPUS_PER_TASK", read)]
    names = [name for name in names if script == RECIPE or not re.match(r"(MAX|SAVE)_STEPS", name)]
    names = [name for name in names if script != "scripts/evaluate.sh" or name in ("GPUS", "NPROC", "GPUS_PER_NODE")]
    arguments = SHOWN.get(script, ([], {}))[0]
    for value in NO_COUNT:
        name = random.Random(value).choice(names)
        result = start(script, "--dry-run", *arguments, interpreter=interpreter, cwd=tmp_path, **{name: value})
        assert (result.returncode, result.stdout) == (2, ""), (name, value, result.stderr)
        assert re.fullmatch(rf"error: {name} is '.{{1,60}}', expected a whole number .*\n", result.stderr), (
            result.stderr
        )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("name", OTHERS.split())
def test_other_variables_are_one_word_or_one_line_says_what_is_expected(name, interpreter, tmp_path):
    values = ["*", "a b", "a\nb", "-x", "$(touch oops)", "x" * 5000 + " "]
    for value in values:
        result = start(RECIPE, "--dry-run", interpreter=interpreter, cwd=tmp_path, **{name: value})
        assert (result.returncode, result.stdout) == (2, ""), (name, value, result.stderr)
        assert re.fullmatch(rf"error: {name} is '.{{1,60}}', expected .*\n", result.stderr), result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["STRIDE", "OUT"])
def test_variables_of_an_evaluation_are_checked(name, tmp_path):
    for value in ("-x", "a\nb"):
        result = start("scripts/evaluate_auto.sh", "ckpt", "--dry-run", cwd=tmp_path, **{name: value})
        assert re.fullmatch(rf"error: {name} is '[^\n]*', expected .*\n", result.stderr), result.stderr


def test_an_empty_variable_counts_as_not_set(tmp_path):
    plain = start(RECIPE, "--dry-run", cwd=tmp_path, MASTER_PORT="12345")
    empty = dict.fromkeys(f"{COUNTS} {OTHERS}".split(), "")
    assert start(RECIPE, "--dry-run", cwd=tmp_path, **empty, MASTER_PORT="12345").stdout == plain.stdout


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_paths_may_have_spaces_and_signs(interpreter, tmp_path):
    folder = "it's a * $HOME folder"
    result = start(RECIPE, "--dry-run", interpreter=interpreter, cwd=tmp_path, MODEL_PATH=folder, OUTPUT_DIR=folder)
    assert shlex.split(result.stdout).count(folder) == 2


def test_the_placeholder_of_the_public_readme_is_no_partition(tmp_path):
    result = start(RECIPE, cwd=tmp_path, PARTITION="your partition", GPUS="32")
    assert result.returncode == 2
    assert result.stderr == (
        "error: PARTITION is 'your partition', expected the name of a slurm partition (sinfo lists them)\n"
    )


@pytest.mark.skipif(shutil.which("srun") is not None, reason="slurm is installed")
@pytest.mark.parametrize("environ", [{"PARTITION": "gpu", "GPUS": "32"}, {"LAUNCHER": "slurm"}, {"SUBMIT": "1"}])
def test_slurm_that_is_not_installed_is_an_error(environ, tmp_path):
    result = start(RECIPE, cwd=tmp_path, MODEL_PATH=str(tmp_path), **environ)
    assert (result.returncode, result.stdout) == (2, "")
    asks = "PARTITION=gpu" if "PARTITION" in environ else "LAUNCHER="
    assert re.fullmatch(rf"error: {asks}.* asks for slurm, but srun is not installed here; .*\n", result.stderr)


@pytest.mark.parametrize(
    ("script", "arguments"), [(RECIPE, []), ("scripts/evaluate_auto.sh", ["pretrained/InternVL2-2B"])]
)
def test_a_missing_checkpoint_comes_with_the_command_that_fetches_it(script, arguments, tmp_path):
    if (REPOSITORY / "pretrained" / "InternVL2-2B").exists():
        pytest.skip("it is there")
    result = start(script, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert "hf download OpenGVLab/InternVL2-2B --local-dir pretrained/InternVL2-2B" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "code"), [("OpenGVLab/InternVL2-2B", 0), ("OpenGVLab/InternVL2-1B", 2), ("..//x", 2)])
def test_a_hub_id_counts_as_a_checkpoint_when_the_local_cache_has_it(name, code, tmp_path):
    (tmp_path / "models--OpenGVLab--InternVL2-2B/snapshots").mkdir(parents=True)
    result = start("scripts/evaluate.sh", name, "pope", cwd=tmp_path, PYTHON="echo", HF_HUB_CACHE=str(tmp_path))
    assert result.returncode == code, result.stderr
    assert (f"--checkpoint {name} --tasks pope" in result.stdout) == (code == 0)


@pytest.mark.parametrize("script", ["shell/job.sh", "scripts/evaluate_array.sh"])
def test_a_copy_as_slurm_makes_one_finds_the_prelude(script, tmp_path):
    shutil.copy(REPOSITORY / script, tmp_path / "slurm_script")
    environ = clean_environment(EVALUATE_ARRAY_ROOT=str(REPOSITORY))
    command = ["sh", str(tmp_path / "slurm_script"), "--help"]
    result = subprocess.run(command, env=environ, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_script_begins_with_the_prelude():
    for script in set(SCRIPTS) - {"shell/prelude.sh"}:
        code = re.sub(r"^#.*\n", "", Path(REPOSITORY, script).read_text(), flags=re.MULTILINE)
        assert re.match(r"set -e?u\n(.*\n){0,3}\. \"[^\n]*prelude\.sh\"\n|set -u\n(.*\n)*?\. ", code), script
