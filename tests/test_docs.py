"""The documentation names files, folders and commands that exist, and quotes what commands print."""

import importlib.util
import re
from pathlib import Path

import pytest

from internvl.plan.__main__ import main as plan

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "INSTALLATION.md", *sorted((ROOT / "docs").rglob("*.md"))]
# docs/migration.md names files of the public code; tests/test_moved_names.py looks at what it names here.
OWN_NAMES = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "migration.md"], ids=lambda page: str(page.relative_to(ROOT))
)
# Benchmarks that docs/decisions/adding_a_benchmark.md and docs/your_benchmark.md add.
INVENTED = {"eval/tasks/colours.py", "eval/tasks/NAME.py"}
SOURCES = [path for part in ("internvl", "eval", "studies") for path in (ROOT / part).rglob("*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not re.match(r"https?://", link) and not (page.parent / link).exists()]
    assert not missing


@OWN_NAMES
def test_modules_that_commands_start_exist(page):
    names = set(re.findall(r"python3? -m ((?:internvl|eval|studies)[\w.]*\w)", page.read_text()))
    assert not [name for name in names if importlib.util.find_spec(name) is None]


@OWN_NAMES
def test_paths_of_the_project_exist(page):
    paths = set(
        re.findall(
            r"\b((?:internvl|eval|studies|scripts|shell|tests|benchmarks)/[\w/.-]*\w\.(?:py|sh))\b", page.read_text()
        )
    )
    assert not [path for path in paths - INVENTED if not (ROOT / path).exists()]


def test_every_file_on_the_map_exists():
    named = set(re.findall(r"[\w/]+\.py\b", (ROOT / "docs" / "architecture.md").read_text()))
    ends = {str(path.relative_to(ROOT)) for path in (*SOURCES, *(ROOT / "tests").glob("*.py"))}
    assert not [name for name in named if not any(f"/{end}".endswith(f"/{name}") for end in ends)]


def test_the_table_of_long_rows_is_what_its_command_prints(capsys):
    assert plan(["--table"]) == 0
    assumptions, _, table = capsys.readouterr().out.partition("\n\n")
    page = (ROOT / "docs/long_context.md").read_text()
    assert table.strip() in page
    rates = re.search(r"H100 with .* fragments; .* between GPUs", assumptions)[0]
    assert rates in " ".join(page.split())
