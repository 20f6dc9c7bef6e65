"""Recipes of shell/internlm2_2b/: their flags, their limits, and the estimates that their headers quote."""

import json
import re
import shlex
from pathlib import Path

import pytest

from internvl.plan.__main__ import build_parser, build_setting
from internvl.plan.search import GIB, make_plan
from internvl.plan.setting import Setting
from internvl.plan.sizes import read_sizes
from internvl.train.arguments import Arguments, parse_arguments
from tests.train.test_shell import REPOSITORY, SHELL, dry_run, run, split_command

FOLDER = SHELL / "internlm2_2b"
STEM = "internvl_chat_v2_internlm2_2b_dynamic_res_v2pe"
TRAINING = ["baseline.sh", f"{STEM}_32k.sh", f"{STEM}_256k.sh", "lora_24gb.sh", "lora_80gb.sh"]
TOKENS_PER_TILE = 256


def read_flags(recipe: str, **environ: str) -> Arguments:
    words = dry_run(f"internlm2_2b/{recipe}", LAUNCHER="slurm", SUBMIT="0", **environ)
    return parse_arguments(split_command(words)[1])


def read_estimate(script: Path) -> tuple[list[str], str]:
    """(arguments of the estimator, the line of numbers) in a script's header."""
    header = script.read_text().partition("set -eu")[0].replace("#", "").replace("\\\n", " ")
    command = re.search(r"python -m internvl\.plan (.*)\n\s*(.*)\n", header)
    assert command is not None, f"{script.name} quotes no estimate"
    return shlex.split(command[1]), command[2].strip()


def plan(words: list[str]) -> Setting:
    return build_setting(build_parser().parse_args(words))


@pytest.mark.parametrize("recipe", [*TRAINING, "v2pe_1m.sh"])
def test_the_header_quotes_what_the_estimator_says(recipe):
    words, numbers = read_estimate(FOLDER / recipe)
    result = make_plan(read_sizes(words[words.index("--model") + 1]), plan(words))
    unit = "prefill" if result.setting.mode == "infer" else "step"
    assert numbers == (
        f"{result.needed / GIB:.1f} GiB a GPU with {result.setting.reserve_gib:.0f} GiB reserve: "
        f"{'fits' if result.fits else 'does not fit'}; {result.cost.step_s:.1f} s a {unit}, "
        f"{result.cost.tokens_per_s:,.0f} tokens/s"
    )
    assert result.fits


@pytest.mark.parametrize("recipe", [*TRAINING, "v2pe_1m.sh"])
def test_the_table_of_recipes_quotes_the_header(recipe):
    table = (REPOSITORY / "docs" / "recipes.md").read_text()
    (row,) = [line for line in table.splitlines() if line.startswith(f"| `{recipe}`")]
    memory, time = re.match(r"(\S+ GiB) .*; (\S+ s) a", read_estimate(FOLDER / recipe)[1]).groups()
    assert f"| {memory} | {time} a " in row


@pytest.mark.parametrize("recipe", TRAINING)
def test_the_estimate_is_of_the_job_that_the_recipe_starts(recipe):
    setting = plan(read_estimate(FOLDER / recipe)[0])
    model, data, training = read_flags(recipe)
    zero = json.loads((REPOSITORY / training.deepspeed).read_text())["zero_optimization"]
    assert (setting.mode, setting.dtype, setting.documents) == ("train", "bfloat16", 1)
    assert setting.max_packed_tokens == data.max_packed_tokens == data.max_seq_length
    assert setting.tiles == min(data.num_images_expected, data.max_packed_tokens // TOKENS_PER_TILE)
    assert setting.zero_stage == zero["stage"]
    assert setting.offload_optimizer == ("offload_optimizer" in zero)
    for name in ("chunk_num", "grad_checkpoint", "keep_attention", "vit_batch_size", "offload_activations"):
        assert getattr(setting, name) == getattr(model, name), name
    for name in ("freeze_backbone", "freeze_llm", "freeze_mlp", "use_llm_lora", "use_backbone_lora"):
        assert getattr(setting.trained, name) == getattr(model, name), name
    assert setting.mlp_tile_tokens == model.mlp_tile_tokens


def test_rows_of_256k_hold_256k_tokens_of_256k_data():
    model, data, training = read_flags(f"{STEM}_256k.sh")
    assert data.max_packed_tokens == data.max_seq_length == 262144
    assert data.num_images_expected >= data.max_packed_tokens // TOKENS_PER_TILE
    assert data.meta_path == "shell/data/annotation_train_256k.json"
    assert (model.attn_type, model.chunk_num, training.gradient_accumulation_steps) == ("ring", 8, 1)


def test_recipes_differ_from_the_32k_recipe_where_they_say():
    reference = vars_of(read_flags(f"{STEM}_32k.sh"))
    differences = {recipe: vars_of(read_flags(recipe)).items() - reference.items() for recipe in TRAINING}
    always = {"output_dir"}
    rows = {"max_packed_tokens", "max_seq_length", "num_images_expected", "meta_path"}
    steps = {"max_steps", "save_steps", "deepspeed"}
    lora = {"freeze_backbone", "use_llm_lora", "vit_batch_size", "learning_rate", "gradient_accumulation_steps"}
    assert {name: {key for key, _ in items} for name, items in differences.items()} == {
        "baseline.sh": always | {"rope_pos_id_version"},
        f"{STEM}_32k.sh": set(),
        f"{STEM}_256k.sh": always | rows | steps | {"chunk_num", "attn_type", "keep_attention", "vit_batch_size"},
        "lora_24gb.sh": always | steps | lora,
        "lora_80gb.sh": always | steps | lora | rows,
    }


def vars_of(arguments: Arguments) -> dict[str, str]:
    return {name: str(value) for group in arguments for name, value in vars(group).items()}


OUTPUT = "work_dirs/both"


def test_two_stages_are_the_two_recipes_one_behind_the_other():
    result = run(
        "internlm2_2b/two_stage.sh", "--dry-run", "--seed", "7", LAUNCHER="slurm", SUBMIT="0", OUTPUT_DIR=OUTPUT
    )
    assert result.returncode == 0, result.stderr
    first, second = (parse_arguments(split_command(shlex.split(line))[1]) for line in result.stdout.splitlines())
    changed = {"output_dir": f"{OUTPUT}/32k", "seed": "7"}
    assert vars_of(first) == vars_of(read_flags(f"{STEM}_32k.sh")) | changed
    changed = {"output_dir": f"{OUTPUT}/256k", "model_name_or_path": f"{OUTPUT}/32k", "seed": "7"}
    assert vars_of(second) == vars_of(read_flags(f"{STEM}_256k.sh")) | changed


def test_a_recipe_fits_on_a_page():
    for script in FOLDER.glob("*.sh"):
        assert len(script.read_text().splitlines()) <= 75, script.name
