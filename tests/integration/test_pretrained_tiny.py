"""The model in pretrained/InternVL2-Tiny: it is what its card says."""

from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModel

from internvl.infer.session import Session
from internvl.synth.miniature.charts import draw_chart, make_chart
from internvl.synth.questions import SHORT_ANSWER_SENTENCE

FOLDER = Path(__file__).parents[2] / "pretrained" / "InternVL2-Tiny"


@pytest.fixture(scope="module")
def session():
    return Session.from_pretrained(FOLDER)


def test_it_reads_charts_that_it_has_not_seen(session):
    rng = Random("charts of this test")
    right = 0
    for _ in range(20):
        chart = make_chart(rng)
        for question, answer in chart.questions:
            prompt = f"<image>\n{question} {SHORT_ANSWER_SENTENCE}"
            right += session.answer(prompt, [draw_chart(chart, tile=56)], max_new_tokens=8).text == answer
    assert right >= 32  # of 40; the card says 0.93


def test_code_beside_the_weights_is_that_of_the_package(monkeypatch, tmp_path):
    links = sorted(FOLDER.glob("*.py"))
    assert links
    assert all(path.is_symlink() and path.resolve().parent.name == "model" for path in links)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    assert type(model).__name__ == "InternVLChatModel"
    assert sum(parameter.numel() for parameter in model.parameters()) == 324_096
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
