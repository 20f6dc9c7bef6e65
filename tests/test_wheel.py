"""The built package in an environment of its own, used as somebody does who has nothing else of this repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def v2pe(tmp_path_factory):
    """Runs `v2pe` of the installed wheel in an empty folder; what it needs is taken from this environment."""
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

    def run(*words):
        command = [environment / "bin" / "v2pe", *words]
        done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run.folder = empty
    return run


def test_an_installed_package_trains_evaluates_and_answers(v2pe):
    assert v2pe("--version").startswith("v2pe 0.")
    Image.new("RGB", (56, 56), "red").save(v2pe.folder / "a.png")
    tiny = ("--checkpoint", "pretrained/InternVL2-Tiny")
    assert v2pe("chat", *tiny, "--max_new_tokens", "4", "--image", "a.png", "Which digit is this?").strip()

    small = ("--filler_sentences", "0", "1", "--train", "0-8:20", "--num_items", "2", "--factors", "1")
    v2pe("data", "miniature", "--out", "work_dirs/tiny/data", "--tokenizer", tiny[1], "--name", "demo", *small)
    v2pe("train", "tiny.yaml", "max_steps=2", "--logging_steps", "1")
    trained = v2pe.folder / "work_dirs/tiny/finetune"
    assert (trained / "model.safetensors").is_file()
    assert "rope_pos_id_version: v2pe_rnd" in (trained / "run.yaml").read_text()

    v2pe(
        *("eval", "--checkpoint", str(trained), "--tasks", "mm_niah/retrieval-text-test", "--out", "eval_1"),
        *("--data_root", "work_dirs/tiny/data/benchmark", "--rope_pos_id_version", "v2pe_fix"),
        *("--rope_pos_id_stride", "1/4", "--max_num", "64"),
    )
    v2pe("report", "eval_1", "--out", "report.html")
    assert "retrieval-text-test" in (v2pe.folder / "report.html").read_text()


def test_a_package_carries_recipes_and_settings(v2pe):
    shown = v2pe("train", "internvl2_2b_256k.yaml", "--help")
    assert "--rope_pos_id_version" in shown
    assert "complete: 10 questions, 4 pictures" in v2pe("data", "benchmarks", "own_benchmark/shapes.yaml")
