"""Settings of the whole suite."""

import gc
import os
import tempfile
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.shapes import start_checking
from tests.warm_python import warm_python

# Tensors are tiny, and several tests run at a time: one thread in every test process and in what it starts. torch reads
# this when it is imported, which happens with the first test file.
os.environ["OMP_NUM_THREADS"] = "1"

# Shapes and types in signatures hold: calls in a test process are checked against them.
CHECKED_PACKAGES: tuple[str, ...] = ("internvl.model", "internvl.parallel", "internvl.infer")
install_import_hook(CHECKED_PACKAGES, "tests.shapes.check_calls")

gc.disable()  # until all is imported, which makes a million objects that stay

settings.register_profile("shared", deadline=None)  # tests run on shared machines; time is measured in benchmarks/
settings.load_profile("shared")


def pytest_configure() -> None:
    """Processes that run tests at the same time share what costs ten seconds to start."""
    os.environ["WARM_PYTHON"] = warm_python()


def pytest_collection_finish() -> None:
    """What test files have imported stays: a garbage collection in a test passes over it, or it takes half a second."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports travel between processes as UTF-8, which has no half characters; names of files in tests may."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own() -> Iterator[None]:
    """Tests, and processes that they start, leave the user's cache alone and download nothing."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERNVL_CACHE", os.path.join(folder, "internvl"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True)
def checked_calls() -> None:
    """Every test begins with checked shapes."""
    start_checking()


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a test, or the code that it runs, does to the environment ends with it."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)
