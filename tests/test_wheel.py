"""The built package in an environment of its own, used as somebody does who has nothing else of this repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
# Commands after another in one process: importing what each needs takes longer than what they do here.
SESSION = """
import json, sys
from internvl.cli import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    if code:
        sys.exit(code)
"""


@pytest.fixture
def installed(tmp_path_factory):
    """Runs commands of the installed wheel in an empty folder; what it needs is taken from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment, empty = folder / "source", folder / "environment", folder / "empty"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0")[:-1]:
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    install = [*pip, "--python", str(environment), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    empty.mkdir()
    # Packages of a plain PYTHONPATH: .pth files, such as that of this checkout's own installation, are not read there.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean |= {"PYTHONPATH": sysconfig.get_paths()["purelib"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(program, *words):
        command = [environment / "bin" / program, *words]
        done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run.folder = empty
    return run


def test_an_installed_package_trains_evaluates_and_answers(installed):
    assert installed("v2pe", "--version").startswith("v2pe 0.")
    Image.new("RGB", (56, 56), "red").save(installed.folder / "a.png")
    tiny = ["--checkpoint", "pretrained/InternVL2-Tiny"]
    assert installed("v2pe", "chat", *tiny, "--max_new_tokens", "4", "--image", "a.png", "Which digit is this?").strip()

    small = "--filler_sentences 0 1 --train 0-8:20 --num_items 2 --factors 1"
    positions = "--rope_pos_id_version v2pe_fix --rope_pos_id_stride 1/4 --max_num 64"
    trained = "work_dirs/tiny/finetune"
    commands = (
        f"data miniature --out work_dirs/tiny/data --tokenizer {tiny[1]} --name demo {small}",
        "train tiny.yaml max_steps=2 --logging_steps 1",
        f"eval --checkpoint {trained} --tasks mm_niah/retrieval-text-test --out eval_1 {positions}"
        " --data_root work_dirs/tiny/data/benchmark",
        "report eval_1 --out report.html",
        "data benchmarks own_benchmark/shapes.yaml",
        "train internvl2_2b_256k.yaml --help",
    )
    shown = installed("python", "-c", SESSION, json.dumps([command.split() for command in commands]))
    assert (installed.folder / trained / "model.safetensors").is_file()
    assert "rope_pos_id_version: v2pe_rnd" in (installed.folder / trained / "run.yaml").read_text()
    assert "retrieval-text-test" in (installed.folder / "report.html").read_text()
    assert "--rope_pos_id_version" in shown
    assert "complete: 10 questions, 4 pictures" in shown
