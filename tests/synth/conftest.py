"""A tiny checkpoint and a small data set, made once for all tests of the builders."""

from dataclasses import replace
from pathlib import Path

import pytest

from internvl.synth.miniature.long_mr_dataset import LongMRSpec, Reader, build_dataset
from internvl.synth.needles.long_mr import build_parser, read_spec
from internvl.tools.make_tiny import TinySpec, make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "InternVL2-Tiny"
    make_checkpoint(folder, TinySpec())
    return folder


@pytest.fixture(scope="session")
def reader(checkpoint) -> Reader:
    return Reader.load(checkpoint)


@pytest.fixture(scope="session")
def spec() -> LongMRSpec:
    """Two training files and two test lengths, few images."""
    arguments = "--train 0-2:20 0-24:60 --num_items 10 --factors 1 4 --base_tiles 24 --tiles_per_pool 1"
    arguments += " --num_train_needles 50 --num_test_needles 40"
    return read_spec(build_parser().parse_args(arguments.split()))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, spec, reader) -> Path:
    out = tmp_path_factory.mktemp("dataset")
    assert build_dataset(out, spec, reader)
    return out


@pytest.fixture
def small_spec(spec) -> LongMRSpec:
    """Even less, for tests that build again."""
    return replace(
        spec, train_files=spec.train_files[:1], factors=(1,), num_items=5, num_train_needles=4, num_test_needles=4
    )
