"""Part: every test that is marked `gpu`. Without a card they are all skipped, which shows that they load."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_check.part import CheckFailed, Job, Row, Skipped

ROOT = Path(__file__).parents[2]
_NO_TESTS = 5  # pytest's exit code


def run(job: Job) -> Iterator[Row]:
    """A row per file of tests."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run([sys.executable, "-m", "pytest", *options, *map(str, files)], cwd=ROOT, check=False)
        if not report.exists():
            raise Skipped("pytest did not start; install requirements-dev.txt")
        cases = list(ElementTree.parse(report).iter("testcase"))
    yield from count_by_file(cases)
    failed = [case for case in cases if find_outcome(case) == "failed"]
    if failed:
        names = ", ".join(case.get("name", "") for case in failed[:3])
        raise CheckFailed(f"{len(failed)} of {len(cases)} tests failed: {names}")
    if done.returncode not in (0, _NO_TESTS):
        raise CheckFailed(f"pytest ended with code {done.returncode}")


def count_by_file(cases: list[ElementTree.Element]) -> Iterator[Row]:
    """How many tests of every file passed, failed, were skipped."""
    for name in sorted({case.get("classname", "") for case in cases}):
        own = [find_outcome(case) for case in cases if case.get("classname", "") == name]
        yield {"tests": name, **{outcome: own.count(outcome) for outcome in ("passed", "failed", "skipped")}}


def find_outcome(case: ElementTree.Element) -> str:
    """Of a test in pytest's report."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"
