"""Two commands started at the same time in one folder: one runs as if alone, the other ends with one line."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.eval.published import make_needle, write_image, write_lines
from tests.train.tiny_run import ENTRY, REPOSITORY, clean_environment, flags, make_checkpoint, make_data

TINY = REPOSITORY / "pretrained/InternVL2-Tiny"
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
    options = f"--name x --tokenizer {TINY} --num_train 60 --num_test 6"
    return ["-m", "internvl.synth.miniature", "--out", str(out), *options.split()]


def export(workspace: Path, out: Path) -> list[str]:
    return ["-m", "internvl.tools.export_native", str(workspace / "checkpoint"), "--out", str(out)]


def read_weights(out: Path) -> Content:
    return {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in load_file(out / "model.safetensors").items()
    }


def read_predictions(out: Path) -> Content:
    lines = (out / "mm_niah/retrieval-text-test/predictions.jsonl").read_text().splitlines()
    return {record["id"]: json.dumps({**record, "seconds": 0}) for record in map(json.loads, lines)}


def read_files(out: Path) -> Content:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


COMMANDS = {
    "training": Command(train_for_a_while, read_weights),
    "evaluation": Command(evaluate, read_predictions),
    "builder": Command(build_miniature, read_files),
    "export": Command(export, read_files),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    make_checkpoint(folder / "checkpoint")
    make_data(folder / "data")
    root = folder / "benchmark/MM-NIAH/mm_niah_test"
    write_image(root / "images/0.png")
    records = [make_needle(index, images_list=["0.png"]) for index in range(40)]
    write_lines(root / "annotations/retrieval-text.jsonl", records)
    return folder


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
def undisturbed(workspace):
    """What each command leaves when it runs alone."""
    results = {}
    for name, command in COMMANDS.items():
        process = start(command, workspace, workspace / "alone" / name)
        assert process.communicate()[1] is not None
        assert process.returncode == 0
        results[name] = command.read(workspace / "alone" / name)
    return results


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, 10))])
@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_starts_one_runs_as_if_alone(workspace, undisturbed, tmp_path, name, number):
    processes = [start(COMMANDS[name], workspace, tmp_path / "out") for _ in range(2)]
    results = sorted((process.communicate()[1], process.returncode) for process in processes)
    results.sort(key=lambda result: result[1])
    assert COMMANDS[name].read(tmp_path / "out") == undisturbed[name]
    (_, won), (message, lost) = results
    assert won == 0
    if lost != 0:  # else it came when everything was there, and had nothing to do
        assert lost == 2
        assert message.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in message
        assert "is being written by" in message or "exists and is not an empty folder" in message
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
