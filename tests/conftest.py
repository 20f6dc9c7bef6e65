"""Settings of the whole suite."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401  (the hook names its checker, and does not import it)

# Shapes and types in signatures hold: every call in a test process is checked against them.
CHECKED_PACKAGES: tuple[str, ...] = ("internvl.model", "internvl.parallel", "internvl.infer")
install_import_hook(CHECKED_PACKAGES, "tests.shapes.check_calls")

settings.register_profile("shared", deadline=None)  # tests run on shared machines; time is measured in benchmarks/
settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own() -> Iterator[None]:
    """Tests, and processes that they start, leave the user's cache alone and download nothing."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERNVL_CACHE", os.path.join(folder, "internvl"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
