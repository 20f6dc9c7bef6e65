"""Every block of commands or Python in the documentation runs here, or the comment above it says why not.

    <!-- not run: REASON -->         what it needs is not here
    <!-- run by: FILE::TEST -->      another test runs it
    <!-- dry run -->                 scripts get --dry-run

The blocks of a page run one after the other in a folder that looks like the repository. CKPT is
the tiny model there.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from tests.test_docs import PAGES, ROOT
from tests.warm_python import warm_python

FENCED = re.compile(
    r"(?:^ *<!-- (?P<marker>[^\n]*) -->\n)?"
    r"^(?P<indent> *)```(?P<kind>bash|sh|console|python)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"\n\n    (?:\w+=\S+ )*(?:python3? |sh |pip |hf |v2pe |make )")
DRY = 'sh() { command sh "$@" --dry-run; }\n'
LINKED = (
    *("benchmarks", "docs", "eval", "examples", "internvl", "pretrained"),
    *("scripts", "shell", "studies", "tests", "README.md"),
)


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str
    marker: str


def read_blocks(page: Path) -> list[Block]:
    return [
        Block(found["kind"], dedent(found["text"]), found["marker"] or "")
        for found in FENCED.finditer(page.read_text())
    ]


def is_run(block: Block) -> bool:
    return not block.marker or block.marker == "dry run"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_marker_says_who_runs_a_block_or_why_nobody_does(page):
    for block in read_blocks(page):
        kind, _, rest = block.marker.partition(": ")
        assert kind in ("", "dry run") or (kind in ("not run", "run by") and rest), block
        if kind == "run by":
            file, _, test = rest.partition("::")
            assert f"def {test}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_stand_in_fenced_blocks(page):
    assert not INDENTED.search(page.read_text())


@pytest.fixture
def folder(tmp_path):
    """A folder like the repository, with what commands of the documentation name."""
    for part in LINKED:
        (tmp_path / part).symlink_to(ROOT / part)
    shutil.copytree(ROOT / "pretrained" / "InternVL2-Tiny", tmp_path / "CKPT")
    programs = tmp_path / ".bin"
    programs.mkdir()
    for program, words in {"python": "", "v2pe": "-m internvl.cli"}.items():
        (programs / program).write_text(f'#!/bin/sh\nexec {warm_python()} {words} "$@"\n')
        (programs / program).chmod(0o755)
    return tmp_path


TRAINING = ("docs/your_data.md", "docs/resume.md")
RUNNING = [page for page in PAGES if any(map(is_run, read_blocks(page)))]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if name(page) in TRAINING else []) for page in RUNNING],
    ids=list(map(name, RUNNING)),
)
def test_the_blocks_of_a_page_run(page, folder):
    for block in filter(is_run, read_blocks(page)):
        if block.kind == "console":
            commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
            for command, output in (text.split("\n", 1) for text in commands):
                assert run(command, folder)[1] == output, command
            continue
        if block.kind == "python":
            (folder / "block.py").write_text(block.text)
        script = {"python": "python block.py"}.get(block.kind, block.text)
        code, printed = run((DRY if block.marker else "") + "set -eu\n" + script, folder)
        assert code == 0, f"{block.text}\n{printed[-3000:]}"


def run(script: str, folder: Path) -> tuple[int, str]:
    """Exit code and all that a script printed."""
    environ = {**os.environ, "PATH": f"{folder / '.bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environ, stdin=subprocess.DEVNULL, timeout=300, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout
