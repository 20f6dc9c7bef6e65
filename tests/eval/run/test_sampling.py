"""Answers that are drawn or searched: --temperature, --seed, --num_beams."""

import json

import pytest

from eval.run.__main__ import main
from internvl.infer.session import Session
from internvl.infer.settings import Sampling


@pytest.fixture
def ask(checkpoint, benchmark_root, record, tmp_path):
    """Responses to two questions, and the settings beside them."""
    benchmark_root.write("retrieval-text", [record(i) for i in range(2)])
    task = "mm_niah/retrieval-text-test"

    def start(*flags):
        out = tmp_path / f"out {' '.join(flags)}"
        given = ["--checkpoint", str(checkpoint), "--data-root", str(benchmark_root.root), "--device", "cpu"]
        assert main([*given, "--datasets", task, "--out-dir", str(out), *flags]) == 0
        lines = (out / task / "predictions.jsonl").read_text().splitlines()
        settings = json.loads((out / task / "settings.json").read_text())
        return [json.loads(line)["response"] for line in lines], settings

    return start


def test_drawn_answers_follow_from_the_seed(ask):
    greedy, settings = ask("--seed", "3")
    drawn, drawn_settings = ask("--temperature", "2", "--seed", "3")
    assert drawn != greedy
    assert ask("--temperature", "2.0", "--seed", "3")[0] == drawn
    assert ask("--temperature", "2", "--seed", "4")[0] != drawn
    assert "seed" not in json.dumps(settings)
    assert '"seed": 3' in json.dumps(drawn_settings)


def test_beams_are_those_of_the_session(ask, monkeypatch):
    seen = []
    asked = Session.ask

    def listen(self, question, **options):
        seen.append(options["sampling"])
        return asked(self, question, **options)

    monkeypatch.setattr(Session, "ask", listen)
    responses, settings = ask("--num-beams", "3")
    assert seen == [Sampling(seed=0, num_beams=3)] * 2
    assert all(isinstance(response, str) for response in responses)
    assert '"num_beams": 3' in json.dumps(settings)
