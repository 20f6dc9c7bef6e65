"""A tiny checkpoint and a small data set, made once for all tests of the builders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvl.synth.command import read_spec
from internvl.synth.miniature.__main__ import build_parser
from internvl.synth.miniature.miniature_set import MiniatureSpec, build_miniature
from internvl.synth.miniature.sentences import read_paragraphs
from internvl.synth.model_reader import ModelReader, load_model_reader
from internvl.synth.needles.__main__ import main as build_needles
from internvl.tools.make_tiny import TinySpec, make_checkpoint
from tests.synth.built import MAX_NUM


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "InternVL2-Tiny"
    make_checkpoint(folder, TinySpec())
    return folder


@pytest.fixture(scope="session")
def reader(checkpoint) -> ModelReader:
    return load_model_reader(checkpoint)


@pytest.fixture(scope="session")
def spec() -> MiniatureSpec:
    """Two training files and two test lengths, few images."""
    arguments = "--train 0-2:20 0-24:60 --num_items 10 --factors 1 4 --base_tiles 24 --tiles_per_pool 1"
    arguments += " --num_train_needles 50 --num_test_needles 40"
    return read_spec(MiniatureSpec, build_parser().parse_args(arguments.split()))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, spec, reader) -> Path:
    out = tmp_path_factory.mktemp("dataset")
    assert build_miniature(out, spec, reader)
    return out


@pytest.fixture
def small_spec(spec) -> MiniatureSpec:
    """Even less, for tests that build again."""
    return replace(
        spec, train_files=spec.train_files[:1], factors=(1,), num_items=5, num_train_needles=4, num_test_needles=4
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        shape = (80 + 10 * (number % 3), 90 + 25 * (number % 4), 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, pictures) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    paragraphs = read_paragraphs()
    for number in range(6):
        (folder / f"{number}.png").write_bytes((pictures / f"{number}.png").read_bytes())
        text = "\n\n".join(paragraphs[40 * number : 40 * number + 40])
        (folder / f"text{number}.md").write_text(
            f"![a picture]({number}.png)\n\n{text}\n\n<img> and <image> <|im_end|>"
        )
    (folder / "loose.png").write_bytes((pictures / "7.png").read_bytes())
    (folder / "page.html").write_text(f"<p>{paragraphs[300]}</p><script>var x;</script><img src='5.png'><p>End.</p>")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="session")
def needles_options(corpus, checkpoint) -> list[str]:
    options = f"--corpus {corpus} --model {checkpoint} --max_dynamic_patch {MAX_NUM} --seed 3 --test_share 0.4"
    return f"{options} --train_lengths 2k-3k --num_train 3 --test_lengths 8k 10k --num_test 10".split()


@pytest.fixture(scope="session")
def needles(tmp_path_factory, needles_options) -> Path:
    out = tmp_path_factory.mktemp("needles") / "set"
    assert build_needles([*needles_options, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def tiled_reader(checkpoint):
    return load_model_reader(checkpoint, MAX_NUM)
