"""studies/miniature/run.sh without training: what it would run, by a python that only notes."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from eval.run.options import parse_options
from internvl.train.arguments import parse_arguments

REPOSITORY = Path(__file__).parents[2]
SCRIPT = "studies/miniature/run.sh"
# Notes its arguments, in one write as others may note beside it; a training leaves the checkpoint folder and the file
# that ends it.
NOTING_PYTHON = r"""#!/bin/sh
note=$(printf '%s\n' "$@")
printf '%s\n\n' "$note" >>"$LOG"
previous=
training=0
for word in "$@"; do
    case $word in *internvl_chat_finetune*) training=1 ;; esac
    if [ "$training $previous" = "1 --output_dir" ]; then mkdir -p "$word" && touch "$word/train_results.json"; fi
    if [ "$previous" = --out ]; then mkdir -p "$word"; fi
    previous=$word
done
case "$*" in *"studies.miniature check"*) exit "${GOAL_CODE:-0}" ;; esac
"""


@pytest.fixture
def study(tmp_path):
    """Runs the script; the commands that python was started with so far, module first."""
    python = tmp_path / "python"
    python.write_text(NOTING_PYTHON)
    python.chmod(0o755)
    log = tmp_path / "log"

    def run_study(*arguments: str, **environ: str) -> list[list[str]]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        own = {"PYTHON": str(python), "LOG": str(log), "WORK": str(tmp_path / "work"), "JOBS": "1", "NPROC": "1"}
        environ = own | {"ABLATION_METHODS": ""} | environ
        log.unlink(missing_ok=True)
        result = subprocess.run(
            ["sh", SCRIPT, *arguments], cwd=REPOSITORY, env=kept | environ, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        commands = log.read_text().split("\n\n") if log.exists() else []
        return [command.strip("\n").split("\n") for command in commands if command.strip()]

    return run_study


def of_module(commands: list[list[str]], module: str) -> list[list[str]]:
    return [command[command.index(module) + 1 :] for command in commands if module in command]


def of_training(commands: list[list[str]]):
    rows = []
    for command in commands:
        start = next((i for i, word in enumerate(command) if "internvl_chat_finetune" in word), None)
        if start is not None:
            rows.append(parse_arguments(command[start + 1 :]))
    return rows


def test_quick_trains_a_control_and_v2pe_and_asks_both(study, tmp_path):
    commands = study("--quick")
    first, second, control, v2pe = of_training(commands)
    work = str(tmp_path / "work")
    assert first.training.output_dir == f"{work}/seed_0/stage1_pretraining/phase_1"
    assert second.training.output_dir == f"{work}/seed_0/stage1_round_1"
    assert {run.data.rope_pos_id_version for run in (first, second)} == {"default"}
    assert (control.data.rope_pos_id_version, v2pe.data.rope_pos_id_version) == ("default", "v2pe_rnd")
    assert {run.model.model_name_or_path for run in (control, v2pe)} == {f"{work}/seed_0/stage1"}
    assert {run.data.data_order for run in (control, v2pe)} == {"shuffle"}
    asked = [parse_options(words) for words in of_module(commands, "eval.run")]
    assert [options.out.name for options in asked] == ["gate", *["default", "stride_1-16"] * 2]
    assert [options.settings.rope_pos_id_stride for options in asked[1:]] == [None, 1 / 16] * 2
    assert {
        str(options.settings.rope_scaling) for options in asked if options.settings.rope_pos_id_version == "default"
    } == {"none"}
    assert all(options.length_bins == (100, 250, 450, 800, 1600, 3200) for options in asked)


def test_schemes_are_trained_from_one_stage_1_and_asked_with_their_own_positions_and_yarn(study, tmp_path):
    commands = study("--schemes", "--quick")
    *first, control, v2pe, mrope = of_training(commands)
    assert {run.data.rope_pos_id_version for run in first} == {"default"}
    assert [run.data.rope_pos_id_version for run in (control, v2pe, mrope)] == ["default", "v2pe_rnd", "mrope"]
    assert {run.model.model_name_or_path for run in (control, v2pe, mrope)} == {
        str(tmp_path / "work" / "seed_0" / "stage1")
    }
    built = of_module(commands, "internvl.synth.miniature")
    pairs, *corners = sorted(built, key=lambda words: "--digits" in words)
    assert pairs[pairs.index("--train") + 1] == "0-2:6500"  # of phase 1
    assert {words[words.index("--digits") + 1] for words in corners} == {"corners"}
    asked = [parse_options(words) for words in of_module(commands, "eval.run")][1:]
    assert [options.out.name for options in asked] == ["own", "own+yarn-16"] * 3
    settings = [options.settings for options in asked]
    assert [(own.rope_pos_id_version, own.rope_pos_id_stride) for own in settings] == [
        *[("default", None)] * 2,
        *[("v2pe_fix", 1 / 16)] * 2,
        *[("mrope", None)] * 2,
    ]
    assert [str(own.rope_scaling) for own in settings] == ["none", "yarn:16", "None", "yarn:16", "None", "yarn:16"]
    assert {options.tasks for options in asked} == {
        "mm_niah/retrieval-text-test,mm_niah/retrieval-image-order-test,mm_niah/reasoning-image-sides-test"
    }
    (collected,) = [words for words in commands if "collect" in words]
    assert collected[-1] == str(tmp_path / "work" / "miniature_schemes.json")


def test_own_positions_of_a_stride_are_that_stride(study):
    names = {"EVALUATIONS": "own", "BASELINES": "", "ABLATIONS": ""}
    commands = study(SEEDS="0", METHODS="fix_0.25 axes_mrope_stride_0.25", **names)
    fixed, mrope = (parse_options(words).settings for words in of_module(commands, "eval.run")[-2:])
    assert (fixed.rope_pos_id_version, fixed.rope_pos_id_stride) == ("v2pe_fix", 0.25)
    assert (mrope.rope_pos_id_version, mrope.rope_pos_id_stride) == ("mrope", 0.25)


def test_what_is_finished_is_not_run_again(study):
    study("--quick")
    commands = study("--quick")
    assert of_training(commands) == []
    assert of_module(commands, "eval.run") == []


def test_stage_1_goes_on_until_the_goal_or_the_last_round(study, tmp_path):
    runs = of_training(study(SEEDS="7", METHODS="stage1", EVALUATIONS="", BASELINES="", ABLATIONS="", GOAL_CODE="1"))
    assert [run.training.output_dir.rpartition("_")[2] for run in runs] == ["1", "1", "2", "3", "4"]
    assert [run.training.seed for run in runs] == [7, 7, 207, 307, 407]
    assert runs[2].model.model_name_or_path == runs[1].training.output_dir
    assert (tmp_path / "work" / "seed_7" / "stage1" / "train_results.json").is_file()


@pytest.mark.parametrize(
    ("method", "version", "stride", "scope"),
    [
        ("default", "default", None, "image"),
        ("rnd_image", "v2pe_rnd", None, "image"),
        ("rnd_sample", "v2pe_rnd", None, "sample"),
        ("fix_0.0625", "v2pe_fix", 0.0625, "image"),
        ("theta_1e6", "default", None, "image"),
        ("axes_mrope_interleaved", "mrope_interleaved", None, "image"),
        ("axes_mrope_stride_0.25", "mrope", 0.25, "image"),
    ],
)
def test_methods_are_what_their_names_say(study, method, version, stride, scope):
    commands = study(SEEDS="0", METHODS=method, EVALUATIONS="", BASELINES="", ABLATIONS="")
    tuned = of_training(commands)[-1]
    assert (tuned.data.rope_pos_id_version, tuned.data.rope_pos_id_stride) == (version, stride)
    assert tuned.data.rope_pos_id_rnd_scope == scope
    random = [shlex.join(words) for words in of_module(commands, "internvl.tools.make_tiny")][1]
    assert ("--rope_theta 1e6" in random) == (method == "theta_1e6")


@pytest.mark.parametrize(
    ("evaluation", "stride", "scaling", "logn", "root", "module"),
    [
        ("default+dynamic-2", None, "dynamic:2", None, "data", "eval.run"),
        ("stride_1-4+yarn-4", 0.25, "yarn:4", None, "data", "eval.run"),
        ("stride_1-16+logn-256+text-12", 1 / 16, "None", 256, "text_12", "eval.run"),
        ("stride_2+bf16", 2, "None", None, "data", "studies.miniature.coarse_rotary"),
    ],
)
def test_evaluations_are_what_their_names_say(study, evaluation, stride, scaling, logn, root, module):
    commands = study(SEEDS="0", METHODS="default", EVALUATIONS="", BASELINES="", ABLATIONS=evaluation)
    options = parse_options(of_module(commands, module)[-1])
    assert (options.settings.rope_pos_id_stride, str(options.settings.rope_scaling)) == (stride, scaling)
    assert (options.settings.logn_scaling, options.out.name) == (logn, evaluation)
    assert options.data_root.parent.name == root


def test_evaluations_are_on_several_axes_where_their_names_say_so(study):
    names = "axes_hope axes_mrope_stride_1-4+yarn-16"
    commands = study(SEEDS="0", METHODS="axes_mrope", EVALUATIONS=names, BASELINES="", ABLATIONS="")
    plain, stretched = (parse_options(words).settings for words in of_module(commands, "eval.run")[-2:])
    assert (plain.rope_pos_id_version, plain.rope_pos_id_stride, plain.rope_scaling) == ("hope", None, None)
    assert (stretched.rope_pos_id_version, stretched.rope_pos_id_stride) == ("mrope", 0.25)
    assert str(stretched.rope_scaling) == "yarn:16"


@pytest.mark.parametrize("names", [{"METHODS": "sft"}, {"EVALUATIONS": "ntk"}, {"ABLATIONS": "default+fp8"}])
def test_wrong_names_show_before_anything_runs(tmp_path, names):
    result = subprocess.run(
        ["sh", SCRIPT], cwd=REPOSITORY, env=os.environ | {"WORK": str(tmp_path), "PYTHON": "false", **names},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "is not known" in result.stderr


def test_help_is_the_header():
    result = subprocess.run(["sh", SCRIPT, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("The paper in miniature")
    assert "set -eu" not in result.stdout


def test_ablations_are_made_for_the_seeds_that_are_named(study):
    names = {"EVALUATIONS": "default", "BASELINES": "default+linear-2", "ABLATIONS": "stride_1+bf16"}
    commands = study(SEEDS="0 10", METHODS="default", ABLATION_SEEDS="1 10", ABLATION_METHODS="fix_1", **names)
    outs = [parse_options(command[command.index("-m") + 2 :]).out for command in commands if "--checkpoint" in command]
    asked = [out.parts[-4:] for out in outs if out.parts[-2] == "evaluations"]
    assert [(seed, method, evaluation) for seed, method, _, evaluation in asked] == [
        ("seed_0", "default", "default"),
        ("seed_0", "default", "default+linear-2"),
        ("seed_10", "default", "default"),
        ("seed_10", "default", "default+linear-2"),
        ("seed_10", "default", "stride_1+bf16"),
        ("seed_10", "fix_1", "default"),
    ]


def test_seeds_beside_each_other_run_what_they_run_one_by_one(study, tmp_path):
    names = {"METHODS": "default", "EVALUATIONS": "default", "BASELINES": "", "ABLATIONS": ""}

    def train_and_ask(jobs: str) -> tuple[list[str], list[str]]:
        commands = study(SEEDS="0 1 2", JOBS=jobs, WORK=str(tmp_path / jobs), **names)
        trained = sorted(Path(run.training.output_dir).parent.name for run in of_training(commands))
        return trained, [
            Path(words[words.index("--out") + 1]).name for words in of_module(commands, "studies.miniature collect")
        ]

    one_by_one, beside = train_and_ask("1"), train_and_ask("2")
    assert beside == one_by_one
    log = (tmp_path / "2" / "seed_1.log").read_text()
    assert "== seed 1, default, asked with default" in log


def test_a_seed_that_fails_is_named(study, tmp_path):
    names = {"METHODS": "default", "EVALUATIONS": "default", "BASELINES": "", "ABLATIONS": ""}
    with pytest.raises(AssertionError, match=r"seed 1 ended with code 2.*seed_1\.log"):
        study(SEEDS="0 1", JOBS="2", GOAL_CODE="2", **names)
