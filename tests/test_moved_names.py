"""Names of the public code are understood, or refused with what to use; what the table names exists."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.run.options import _build_parser, parse_options
from eval.tasks.registry import list_task_names, select_tasks
from internvl import moved_names
from internvl.errors import ConfigError
from internvl.infer.settings import Sampling
from internvl.moved_names import DEEPSPEED_CONFIGS, EVALUATION_FLAGS, FIXED_TRAINING_FLAGS, MODULES, SCRIPTS, TASKS
from internvl.tools.migration_page import write_page
from internvl.train.arguments import TrainingArguments, parse_arguments

ROOT = Path(__file__).parents[1]
GIVEN = ["--checkpoint", "ckpt"]
REFUSED = [name for name, old in EVALUATION_FLAGS.items() if old.taken_as is None and old.harmless != moved_names.ANY]


def test_the_page_is_that_of_the_table():
    """If not: python -m internvl.tools.migration_page > docs/migration.md"""
    assert (ROOT / "docs" / "migration.md").read_text() == write_page()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("separator", "-_")
def test_an_old_flag_of_evaluation_is_refused_with_what_to_use(name, separator):
    flag = f"--{name.replace('_', separator)}"
    for words in ([flag], [flag, "something"], [f"{flag}=something"]):
        if words == [flag] and EVALUATION_FLAGS[name].harmless is True:
            continue
        with pytest.raises(ConfigError) as refusal:
            parse_options([*GIVEN, "--tasks", "pope", *words])
        assert str(refusal.value).startswith(f"--{name} ")
        assert str(refusal.value).endswith(EVALUATION_FLAGS[name].use)
        assert "\n" not in str(refusal.value)


def test_old_flags_that_ask_for_nothing_are_accepted():
    words = (
        "--datasets pope --dynamic --num-workers 4 --few-shot 0 --max-num 6 --seed 0 --num-beams 1 --temperature 0.0"
    )
    options = parse_options([*GIVEN, *words.split()])
    assert options == parse_options([*GIVEN, "--tasks", "pope", "--max_num", "6"])


def test_old_flags_with_a_meaning_are_understood():
    words = "--datasets=docvqa_val --out-dir results --num-gpus-per-rank 2 --seed 7 --num-beams 5 --temperature 0.2"
    options = parse_options([*GIVEN, *words.split()])
    assert (options.tasks, options.out, options.gpus_per_task) == ("docvqa_val", Path("results"), 2)
    assert options.sampling == Sampling(0.2, seed=7, num_beams=5)


@pytest.mark.parametrize(
    "words", [["--num-beams", "2", "--ring_attn"], ["--num-beams", "2", "--batch-size", "2"], ["--num_beams", "0"]]
)
def test_beams_that_cannot_be_followed_are_refused(words):
    with pytest.raises(ConfigError, match="num_beams"):
        parse_options([*GIVEN, "--tasks", "pope", *words])


def test_only_what_is_drawn_or_searched_is_in_the_fingerprint():
    assert Sampling(seed=3).fingerprint() == {}
    assert Sampling(0.5, seed=3).fingerprint() == {"temperature": 0.5, "top_p": 1.0, "seed": 3}
    assert Sampling(num_beams=2).fingerprint() == {"num_beams": 2}


@pytest.mark.parametrize("name", TASKS)
def test_an_old_task_name_is_a_task_or_refused(name):
    old = TASKS[name]
    if old.taken_as is None:
        with pytest.raises(ConfigError, match=f"task '{name}' is not"):
            select_tasks(name)
    else:
        assert [task.name for task in select_tasks(name)] == [old.taken_as]


@pytest.mark.parametrize("name", ["retrieval-image-test", "reasoning-text-test-1M", "ALFRED"])
def test_a_task_that_one_group_has_needs_no_group(name):
    (task,) = select_tasks(name)
    assert task.name.partition("/")[2] == name


@pytest.mark.parametrize("name", DEEPSPEED_CONFIGS)
def test_an_old_deepspeed_file_is_ours_unless_it_exists(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(parse_arguments(["--deepspeed", f"configs/{name}"]).training.deepspeed)
    assert path == ROOT / DEEPSPEED_CONFIGS[name].taken_as
    assert path.is_file()
    Path(name).write_text("{}")
    assert parse_arguments(["--deepspeed", name]).training.deepspeed == name


def test_the_flag_that_the_public_readme_names_is_accepted():
    assert (
        parse_arguments(["--chunk_num", "8", "--attn_type", "ring", "--use_chunkTrainer", "True"]).model.chunk_num == 8
    )


@pytest.mark.parametrize("name", [*MODULES, *(path[:-3].replace("/", ".") for path in SCRIPTS)])
def test_an_old_module_is_an_import_error_that_names_the_new_place(name):
    for module in (name, f"{name}.inside"):
        with pytest.raises(ModuleNotFoundError, match=r"of the public code is .*docs/migration\.md"):
            importlib.import_module(module)


def test_other_missing_modules_are_reported_as_always():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'internvl\.nowhere'$"):
        importlib.import_module("internvl.nowhere")


def test_an_old_command_names_the_new_one():
    command = [sys.executable, "-m", "eval.vqa.evaluate_vqa", "--datasets", "docvqa_val"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "python -m eval.run --checkpoint CKPT --tasks vqa/docvqa-val" in result.stderr
    assert "Traceback" not in result.stderr


def list_uses():
    tables = (EVALUATION_FLAGS, TASKS, DEEPSPEED_CONFIGS, MODULES, SCRIPTS, moved_names.TRAINING_FLAGS)
    return [old.use for table in tables for old in table.values()] + list(FIXED_TRAINING_FLAGS.values())


def test_what_the_table_names_exists():
    text = " ".join(list_uses())
    for module in set(re.findall(r"\b((?:internvl|eval)(?:\.\w+)+)", text)):
        importlib.import_module(module)
    paths = re.findall(r"\b((?:internvl|scripts|shell|docs)/[\w/.-]+\.(?:py|sh|md|json))\b", text)
    assert not [path for path in paths if not (ROOT / path).is_file()]
    names = {*list_task_names(), "pope", "scienceqa", "seed", "mmbench", "milebench", "mvbench"}
    tasks = [task for use in list_uses() for task in re.findall(r"--tasks ([\w/-]+)", use)]
    assert tasks
    assert not {task.removesuffix("-combined-1") for task in tasks} - names


@pytest.mark.parametrize("table", ["evaluation", "training"])
def test_flags_that_the_table_names_exist(table):
    if table == "evaluation":
        text = " ".join(old.use for old in EVALUATION_FLAGS.values())
        known = {action.dest for action in _build_parser()._actions} - {
            name for name, old in EVALUATION_FLAGS.items() if old.taken_as is None
        }
        assert {old.taken_as for old in EVALUATION_FLAGS.values() if old.taken_as} <= known
    else:
        text = " ".join([*(old.use for old in moved_names.TRAINING_FLAGS.values()), *FIXED_TRAINING_FLAGS.values()])
        groups = parse_arguments([])
        known = {name for group in groups for name in vars(group)}
        assert set(FIXED_TRAINING_FLAGS) <= set(TrainingArguments.__dataclass_fields__)
    assert set(re.findall(r"--(\w+)", text)) <= known
