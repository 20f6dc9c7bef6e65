"""Settings of the whole suite."""

import gc
import os
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

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

# Tests run on shared machines; time is measured in benchmarks/. `make test-all` takes --hypothesis-profile thorough.
settings.register_profile("quick", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=200)
settings.load_profile("quick")

# Folders whose files share what takes long to start: they stay in one of several test processes.
KEPT_TOGETHER: tuple[str, ...] = ("tests/cuda_without_a_card",)


def pytest_configure() -> None:
    """Processes that run tests at the same time share what costs ten seconds to start."""
    os.environ["WARM_PYTHON"] = warm_python()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Several test processes take files of tests one after the other."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder = os.path.dirname(file)
            return folder if folder in KEPT_TOGETHER else file

    return Scheduling(config, log)


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
