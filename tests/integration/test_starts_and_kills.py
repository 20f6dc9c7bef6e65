"""Commands that are started twice at the same time, or killed at any moment: the result is that of a quiet run."""

import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.synth.miniature.sentences import read_paragraphs
from internvl.train.arguments import ModelArguments
from internvl.train.run.preemption import EXIT_FAILED_TWICE
from internvl.train.trainable import select_trainable
from tests.eval.published import make_needle, write_image, write_lines
from tests.train.tiny_run import ENTRY, REPOSITORY, clean_environment, flags, make_checkpoint, make_data

TINY = REPOSITORY / "pretrained/InternVL2-Tiny"
EXISTS = "exists and is not an empty folder"
Content = dict[str, str]


@dataclass(frozen=True)
class Command:
    """A command that writes into `out`, and what of its result does not depend on time."""

    arguments: Callable[[Path, Path], list[str]]  # (workspace, out) -> command line after `python`
    read: Callable[[Path], Content]


def train_for_a_while(workspace: Path, out: Path) -> list[str]:
    steps = {"max_steps": 24, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}
    return [str(ENTRY), *flags(workspace / "checkpoint", workspace / "data/meta.json", out, **steps)]


def evaluate(workspace: Path, out: Path) -> list[str]:
    options = f"--checkpoint {workspace}/checkpoint --tasks mm_niah/retrieval-text-test --device cpu"
    return ["-m", "eval.run", *options.split(), "--data-root", str(workspace / "benchmark"), "--out", str(out)]


def build_miniature(workspace: Path, out: Path) -> list[str]:
    options = f"--name x --tokenizer {TINY} --train 0-2:60 --num_train_needles 60 --factors 1 --num_items 4"
    return ["-m", "internvl.synth.miniature", "--out", str(out), *options.split()]


def build_needles(workspace: Path, out: Path) -> list[str]:
    options = f"--corpus {workspace}/corpus --model {TINY} --max_dynamic_patch 2 --tasks retrieval-text"
    lengths = "--train_lengths 2k-3k --num_train 20 --test_lengths 8k --num_test 20 --test_share 0.4 --workers 1"
    return ["-m", "internvl.synth.needles", *options.split(), *lengths.split(), "--out", str(out)]


def build_long_vqa(workspace: Path, out: Path) -> list[str]:
    options = f"--annotation {workspace}/questions.jsonl --images {workspace}/data/images --model {TINY} --name mine"
    return [
        "-m",
        "internvl.synth.vqa",
        *options.split(),
        "--lengths",
        "1k-2k",
        "--num_samples",
        "60",
        "--out",
        str(out),
    ]


def unpack(workspace: Path, out: Path) -> list[str]:
    return ["-m", "eval.convert.unpack", str(workspace / "archive.zip"), "--out", str(out)]


def check_training_data(workspace: Path, out: Path) -> list[str]:
    options = f"--model {workspace}/checkpoint --workers 1 --decode --use_packed_ds True --out {out}"
    return ["-m", "internvl.tools.check_data", str(workspace / "data/meta.json"), *options.split()]


def merge(workspace: Path, out: Path) -> list[str]:
    return ["-m", "internvl.tools.merge_lora", str(workspace / "adapted"), str(out)]


def export(workspace: Path, out: Path) -> list[str]:
    return ["-m", "internvl.tools.export_native", str(workspace / "checkpoint"), str(out)]


def read_weights(out: Path) -> Content:
    weights = load_file(out / "model.safetensors")
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in weights.items()}


def read_predictions(out: Path) -> Content:
    lines = (out / "mm_niah/retrieval-text-test/predictions.jsonl").read_text().splitlines()
    return {record["id"]: json.dumps({**record, "seconds": 0}) for record in map(json.loads, lines)}


def read_files(out: Path) -> Content:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


COMMANDS = {
    "training": Command(train_for_a_while, read_weights),
    "evaluation": Command(evaluate, read_predictions),
    "miniature": Command(build_miniature, read_files),
    "needles": Command(build_needles, read_files),
    "long-questions": Command(build_long_vqa, read_files),
    "unpacking": Command(unpack, read_files),
    "data-check": Command(check_training_data, read_files),
    "merge": Command(merge, read_files),
    "export": Command(export, read_files),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    make_checkpoint(folder / "checkpoint")
    make_data(folder / "data")
    root = folder / "benchmark/MM-NIAH/mm_niah_test"
    write_image(root / "images/0.png")
    place = {"placed_depth": 0.5, "context_length": 1500}
    records = [make_needle(index, images_list=["0.png"], meta=place) for index in range(40)]
    write_lines(root / "annotations/retrieval-text.jsonl", records)
    write_corpus(folder / "corpus", pictures=folder / "data/images")
    names = sorted(path.name for path in (folder / "data/images").iterdir())
    write_lines(folder / "questions.jsonl", [{"image": name, "question": f"{name}?", "answer": "x"} for name in names])
    write_archive(folder / "archive.zip")
    write_adapters(folder / "checkpoint", folder / "adapted")
    return folder


def write_corpus(folder: Path, *, pictures: Path) -> None:
    shutil.copytree(pictures, folder)
    paragraphs = read_paragraphs()
    for number in range(6):
        (folder / f"{number}.md").write_text("\n\n".join(paragraphs[40 * number : 40 * number + 40]))


def write_archive(path: Path) -> None:
    content = random.Random(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(300):
            archive.writestr(f"{number % 7}/{number}.bin", content.randbytes(200_000))


def write_adapters(plain: Path, folder: Path) -> None:
    model = InternVLChatModel.from_pretrained(plain)
    select_trainable(model, ModelArguments(use_llm_lora=2, use_backbone_lora=3))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.fill_(0.1)
    model.config.use_llm_lora, model.config.use_backbone_lora = 2, 3
    model.save_pretrained(folder)
    load_tokenizer(plain).save_pretrained(folder)


def start(command: Command, workspace: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command.arguments(workspace, out)],
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def run_alone(workspace):
    """What a command leaves when it runs alone."""

    @functools.cache
    def run(name: str) -> Content:
        out = workspace / "alone" / name
        process = start(COMMANDS[name], workspace, out)
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
        return COMMANDS[name].read(out)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_starts_one_runs_as_if_alone(workspace, run_alone, tmp_path, name, number):
    processes = [start(COMMANDS[name], workspace, tmp_path / "out") for _ in range(2)]
    results = [(process.communicate()[1], process.returncode) for process in processes]
    results.sort(key=lambda result: result[1])
    assert COMMANDS[name].read(tmp_path / "out") == run_alone(name)
    (log, won), (message, lost) = results
    assert won == 0, log
    if lost != 0:  # else it came when everything was there, and had nothing to do
        assert lost == 2
        assert message.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in message
        assert "is being written by" in message or EXISTS in message
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def kill_in_the_middle(process: subprocess.Popen[str], out: Path, delay_s: float) -> None:
    """Kill a command some time after it has begun to write into its folder; it may end before."""
    before = newest_change(out)
    while newest_change(out) == before and process.poll() is None:
        time.sleep(0.01)
    try:
        process.communicate(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def newest_change(out: Path) -> float:
    newest = 0.0
    for folder, _, names in os.walk(out.parent):  # passes over folders that go away meanwhile
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            with suppress(FileNotFoundError):
                newest = max(newest, os.stat(path).st_mtime)
    return newest


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_twenty_kills_change_nothing(workspace, run_alone, tmp_path, name):
    command, rng, num_kills = COMMANDS[name], random.Random(0), 0
    while num_kills < 20:
        out = Path(tempfile.mkdtemp(dir=tmp_path)) / "out"
        code = None
        while code != 0:
            process = start(command, workspace, out)
            if num_kills < 20:
                kill_in_the_middle(process, out, rng.uniform(0, 1.5))
            errors = process.communicate()[1]
            code = process.returncode
            if code == 2 and EXISTS in errors:  # the kill before came after the result had got its name
                code = 0
            elif (
                code == EXIT_FAILED_TWICE
            ):  # three starts in a row without a new checkpoint; the user looks, and goes on
                (out / "run_state.json").unlink()
            else:
                assert code in (0, -signal.SIGKILL), errors
            num_kills += code == -signal.SIGKILL
        assert command.read(out) == run_alone(name)
        assert {path.name for path in out.parent.iterdir()} == {"out"}
