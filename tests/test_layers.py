"""Imports point one way, and importing a package does nothing."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

ROOT = Path(__file__).parents[1]

# What each part may import from this project.
ALLOWED = {
    "internvl/model": {"internvl.model"},
    "internvl/data": {"internvl.data", "internvl.atomic", "internvl.errors", "internvl.model"},
    "internvl/parallel": {"internvl.parallel", "internvl.errors", "internvl.folder_owner", "internvl.model"},
    "internvl/plan": {
        "internvl.plan",
        "internvl.parallel",
        "internvl.command",
        "internvl.errors",
        "internvl.markdown",
        "internvl.model",
        "internvl.options",
        "internvl.parser",
    },
    "internvl/train": {
        "internvl.train",
        "internvl.data",
        "internvl.parallel",
        "internvl.plan",
        "internvl.atomic",
        "internvl.command",
        "internvl.moved_names",
        "internvl.options",
        "internvl.parser",
        "internvl.shipped",
        "internvl.errors",
        "internvl.model",
    },
    "internvl/infer": {
        "internvl.infer",
        "internvl.atomic",
        "internvl.data",
        "internvl.parallel",
        "internvl.command",
        "internvl.parser",
        "internvl.errors",
        "internvl.model",
    },
    "internvl/serve": {
        "internvl.serve",
        "internvl.infer",
        "internvl.data",
        "internvl.command",
        "internvl.parser",
        "internvl.errors",
        "internvl.model",
    },
    "eval/metrics": {"eval.metrics", "internvl.errors"},
    "eval/core": {
        "eval.core",
        "eval.metrics",
        "internvl.atomic",
        "internvl.errors",
        "internvl.model.constants",
        "internvl.data.natural_order",
        "internvl.data.prompt",
        "internvl.data.storage.cache",
        "internvl.data.storage.media",
        "internvl.data.storage.text",
        "internvl.data.storage.pixels",
        "internvl.data.storage.remote",
        "internvl.data.video",
    },
    "eval/tasks": {
        "eval.tasks",
        "eval.core",
        "eval.metrics",
        "eval.convert",  # MMMU, which is fetched, and parquet files
        "internvl.config_file",  # benchmarks in YAML
        "internvl.data.natural_order",
        "internvl.data.storage.media",
        "internvl.errors",
        "internvl.data.storage.text",
        "internvl.data.video",
        "internvl.model.constants",
        "internvl.moved_names",
    },
}
# huggingface_hub comes with transformers, typing_extensions with torch.
OUTSIDE_OF_THE_MODEL = {"torch", "transformers", "huggingface_hub", "internvl", "typing_extensions"}


def imported_modules(path):
    """Absolute names of what a file imports; relative imports are resolved."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_one_way(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported_modules(path)
        if name.split(".")[0] in ("internvl", "eval")
        and not any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED[folder])
    ]
    assert not wrong


def test_the_model_needs_little_and_imports_relatively():
    """So that its folder can be copied beside a checkpoint."""
    for path in (ROOT / "internvl/model").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.startswith("internvl"))
        outside = {name.split(".")[0] for name in imported_modules(path)} - set(sys.stdlib_module_names)
        assert outside <= OUTSIDE_OF_THE_MODEL | ({"jaxtyping"} if path.name == "shapes.py" else set())


def test_shapes_load_without_jaxtyping(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxtyping", None)  # an import fails
    names = runpy.run_path(str(ROOT / "internvl/model/shapes.py"))
    assert names["Float"][Tensor, "batch length"] is names["Int"][Tensor, ""] is Tensor


def test_light_packages_do_not_load_torch():
    code = "import sys, internvl.errors, eval.metrics.mm_niah; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
