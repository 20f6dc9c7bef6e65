from pathlib import Path

import pytest

from tests.train.tiny_run import make_checkpoint, make_data


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def meta(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")
