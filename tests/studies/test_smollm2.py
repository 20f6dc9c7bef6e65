"""The study of SmolLM2 without its model: contexts, what the script would run, results as data, table and figure."""

import argparse
import json
import os
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.run.options import parse_options
from internvl.errors import EvalError
from internvl.synth.forms import ITEM_IMAGES, ITEMS
from internvl.train.arguments import parse_arguments
from studies.miniature.tables import update_page
from studies.smollm2.__main__ import main
from studies.smollm2.contexts import NUM_WORDS, parse_count, write_contexts
from studies.smollm2.results import Row, collect_rows, format_rows, read_rows, write_rows

REPOSITORY = Path(__file__).parents[2]
SCRIPT = "studies/smollm2/run.sh"
READER = SimpleNamespace(tile=28, num_image_token=256, count_text=lambda text: len(text.split()))


def read_records(folder: Path, length: int) -> list[dict]:
    path = folder / ITEMS / f"retrieval-text-{length}k.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "data"
    write_contexts(folder, READER, {2: 2, 4: 1}, seed=0)
    return folder


def test_every_word_of_a_context_is_asked_for_and_words_stand_in_all_its_parts(contexts):
    records = read_records(contexts, 2)
    for context in (records[:NUM_WORDS], records[NUM_WORDS:]):
        assert len({record["context"] for record in context}) == 1
        assert len({record["answer"] for record in context}) == NUM_WORDS
        depths = sorted(record["meta"]["placed_depth"] for record in context)
        assert depths[0] < 0.4
        assert depths[-1] > 0.6
        for record in context:
            assert f'Note "{record["answer"]}".' in record["context"]
            assert all((contexts / ITEM_IMAGES / name).is_file() for name in record["images_list"])
    assert len({record["context"] for record in records}) == 2


def test_contexts_are_as_long_as_their_name_says(contexts):
    for length in (2, 4):
        sizes = [record["meta"]["context_length"] for record in read_records(contexts, length)]
        assert all(0.75 * 1024 * length < size <= 1024 * length for size in sizes)


def test_contexts_that_exist_are_left_alone(contexts):
    before = read_records(contexts, 2)
    write_contexts(contexts, READER, {2: 5}, seed=4)
    assert read_records(contexts, 2) == before


@pytest.mark.parametrize("text", ["8", "8:", "0:4", "8:0", "8:4:2", "8k:4"])
def test_wrong_counts_are_refused(text):
    assert parse_count("8:4") == (8, 4)
    with pytest.raises(argparse.ArgumentTypeError, match="expected LENGTH:COUNT"):
        parse_count(text)


def run_script(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["sh", SCRIPT, *arguments], cwd=REPOSITORY, env=kept | environ, capture_output=True, text=True, check=False
    )


def list_words(shown: str, module: str) -> list[list[str]]:
    """Arguments of every command that a dry run shows of a module."""
    lines = [shlex.split(line) for line in shown.splitlines() if f"{module} " in line and not line.startswith("==")]
    return [words[next(i for i, word in enumerate(words) if word.endswith(module)) + 1 :] for words in lines]


def test_methods_are_trained_with_their_positions_and_short_lengths_are_asked_first(tmp_path):
    shown = run_script("--dry-run", WORK=str(tmp_path), METHODS="default rnd", COUNTS="2:4 32:1").stdout
    trained = [parse_arguments(words) for words in list_words(shown, "internvl_chat_finetune.py")]
    assert [run.data.rope_pos_id_version for run in trained] == ["default", "v2pe_rnd"]
    assert all(run.model.freeze_llm and run.model.use_llm_lora == 16 for run in trained)
    assert {run.data.conv_style for run in trained} == {"Hermes-2"}
    asked = [parse_options(words) for words in list_words(shown, "eval.run")]
    assert [(options.checkpoint.name, options.tasks, options.out.name) for options in asked] == [
        (method, f"mm_niah/retrieval-text-{length}k-test", positions)
        for length in (2, 32)
        for method, positions in [
            ("default", "stride_1-16"), ("default", "default"), ("default", "yarn-4"), ("rnd", "stride_1-16")
        ]
    ]  # fmt: skip
    settings = [options.settings for options in asked[:3]]
    assert [own.rope_pos_id_stride for own in settings] == [1 / 16, None, None]
    assert [str(own.rope_scaling) for own in settings[1:]] == ["none", "yarn:4"]


def test_a_wrong_method_shows_before_anything_runs(tmp_path):
    result = run_script(WORK=str(tmp_path / "work"), METHODS="sft")
    assert result.returncode == 2
    assert "method sft is not known" in result.stderr
    assert not (tmp_path / "work").exists()


def write_scores(work: Path, method: str, positions: str, length: int, right: int, count: int) -> None:
    task = f"mm_niah/retrieval-text-{length}k-test"
    path = work / method / "evaluations" / positions / task / "scores.json"
    path.parent.mkdir(parents=True)
    score = {"score": right / count, "stderr": 0.1, "count": count, "num_failed": 0, "num_empty": 0, "chance": 0.1}
    head = {"task": task, "version": 1, "source": "here", "protocol": "official", "settings": {}, "info": {}}
    path.write_text(json.dumps({**head, "results": {"official": score}}))


def test_finished_evaluations_become_a_table_and_a_figure(tmp_path, capsys):
    work, results, page = tmp_path / "work", tmp_path / "smol.json", tmp_path / "page.md"
    write_scores(work, "default", "yarn-4", 8, 24, 32)
    write_scores(work, "default", "yarn-4", 2, 64, 64)
    write_scores(work, "default", "default", 32, 0, 8)
    assert main(["collect", str(work), "--out", str(results)]) == 0
    rows = [
        Row("default", "default", 32, 0, 8),
        Row("default", "yarn-4", 2, 64, 64),
        Row("default", "yarn-4", 8, 24, 32),
    ]
    assert read_rows(results) == rows
    page.write_text("<!-- tables: smol.json -->\n<!-- end of tables -->\n")
    assert main(["tables", str(results), "--page", str(page)]) == 0
    assert "| trained with | asked with | 2k (0.25x) | 8k (1x) | 32k (4x) |" in page.read_text()
    assert "| `default` | `default` | - | - | 0 of 8: 0.00 (0.00..0.32) |" in page.read_text()
    assert "| 64 of 64: 1.00 (0.94..1.00) | 24 of 32: 0.75 (0.58..0.87) | - |" in page.read_text()
    assert main(["draw", str(results), "--out", str(tmp_path / "images")]) == 0
    assert (tmp_path / "images" / "smol.png").is_file()


def test_an_empty_or_another_folder_or_file_is_refused(tmp_path):
    with pytest.raises(EvalError, match=r"studies/smollm2/run\.sh"):
        collect_rows(tmp_path)
    (tmp_path / "other.json").write_text('{"cells": []}')
    with pytest.raises(EvalError, match=r"other\.json"):
        read_rows(tmp_path / "other.json")


def test_rows_survive_the_file(tmp_path):
    rows = [Row("rnd", "stride_1-16", 16, 9, 16)]
    write_rows(tmp_path / "results" / "smol.json", rows)
    assert read_rows(tmp_path / "results" / "smol.json") == rows


@pytest.mark.parametrize("results", sorted((REPOSITORY / "docs/results").glob("smollm2*.json")), ids=lambda p: p.name)
def test_the_documented_table_is_that_of_the_results(results):
    page = (REPOSITORY / "docs" / "reproduction.md").read_text()
    assert update_page(page, results.name, format_rows(read_rows(results))) == page
