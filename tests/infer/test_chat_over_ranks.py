"""`python -m internvl.infer.chat` under torchrun: one answer, written once, that of one process."""

import re
import subprocess

import pytest

from internvl.infer.chat import main
from tests.train.tiny_run import clean_environment, torchrun


@pytest.fixture
def arguments(checkpoint, make_image):
    return [
        "--checkpoint", str(checkpoint), "--device", "cpu",
        "--image", str(make_image("a.png")), str(make_image("b.png", 56, seed=1)),
        "--max_new_tokens", "8", "--rope_pos_id_stride", "1/2", "--prefill_chunk_size", "10",
    ]  # fmt: skip


def run_on_two_ranks(arguments, question):
    return subprocess.run(
        [*torchrun(2), "-m", "internvl.infer.chat", *arguments],
        env=clean_environment(), input=question, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_two_ranks_write_the_answer_of_one(arguments, capsys):
    assert main([*arguments, "what is this?"]) == 0
    expected = capsys.readouterr().out
    assert expected.strip()
    found = run_on_two_ranks([*arguments, "--verbose", "-"], "what is this?\n")
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout == expected
    assert len(re.findall("tokens in the prompt", found.stderr)) == 1
