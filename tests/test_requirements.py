"""The files of requirements agree: what is installed lies in the ranges, and the old end is where they begin."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
ENDS = ("oldest", "newest")


def read(name):
    lines = (line.split("#")[0].strip() for line in (ROOT / f"requirements{name}.txt").read_text().splitlines())
    return {
        requirement.name.lower().replace("_", "-"): requirement for requirement in map(Requirement, filter(None, lines))
    }


def version_of(pin):
    [specifier] = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.mark.parametrize("name", [*ENDS, "lock"])
def test_tested_releases_lie_in_the_ranges(name):
    pins = {package: version_of(pin) for package, pin in read(f"-{name}").items()}
    ranges = read("") | read("-dev") if name == "lock" else {package: read("")[package] for package in pins}
    assert {p: pins[p] for p in ranges if not ranges[p].specifier.contains(pins[p])} == {}


def test_ranges_begin_at_the_old_end():
    bounds = {
        package: {s.version for s in read("")[package].specifier if s.operator == ">="} for package in read("-oldest")
    }
    for package, pin in read("-oldest").items():
        assert any(pin.specifier.contains(bound) for bound in bounds[package]), package


def test_the_ends_name_the_same_packages():
    assert read("-oldest").keys() == read("-newest").keys()


def test_the_lock_names_no_index():
    pins = [line for line in (ROOT / "requirements-lock.txt").read_text().splitlines() if not line.startswith("#")]
    assert [
        line for line in pins if not line.replace("==", "").replace("-", "").replace(".", "").replace("_", "").isalnum()
    ] == []
