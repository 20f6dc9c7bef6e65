"""What goes into the repository: weights, card, log, and code as links."""

import json
import shutil

import pytest

from internvl.tools.make_tiny import TinySpec, make_checkpoint
from internvl.tools.publish_tiny import CODE, main

TASKS = {
    "mm_niah/retrieval-text-test": 1.0,
    "mm_niah/retrieval-image-test": 0.875,
    "mm_niah/reasoning-image-test": 0.75,
    "vqa/chartqa-test-augmented": 0.5,
}


@pytest.fixture
def run(tmp_path):
    """A finished run: checkpoint, losses, summary."""
    folder = tmp_path / "run"
    make_checkpoint(folder, TinySpec())
    history = [
        {"step": 10, "loss": 2.5, "learning_rate": 1e-3, "tokens_per_second": 9000.0},
        {"step": 20, "train_loss": 2.0},  # the Trainer's last line
    ]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    summary = {"steps": 20, "samples": 1200.0, "tokens": 50000.0, "seconds": 90.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def scores(tmp_path):
    for task, score in TASKS.items():
        path = tmp_path / "scores" / task / "scores.json"
        path.parent.mkdir(parents=True)
        numbers = {"official": {"score": score, "stderr": 0.03, "count": 40}, "upstream": {"score": 0.0}}
        path.write_text(json.dumps({"task": task, "protocol": "official", "results": numbers}))
    return tmp_path / "scores"


def publish(run, scores, out):
    return main(["--checkpoint", str(run), "--runs", str(run), str(run), "--scores", str(scores), "--out", str(out)])


def test_weights_are_copied_and_code_is_linked(run, scores, tmp_path):
    out = tmp_path / "pretrained" / "tiny"
    assert publish(run, scores, out) == 0
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    code = sorted(out.glob("*.py"))
    assert {path.name for path in code} == {path.name for path in run.glob("*.py")}
    assert all(path.is_symlink() and not path.readlink().is_absolute() for path in code)
    assert all(path.resolve() == CODE / path.name for path in code)
    assert not (out / "trainer_state.json").exists()


def test_the_card_has_the_scores_and_the_log_has_the_losses(run, scores, tmp_path):
    out = tmp_path / "tiny"
    assert publish(run, scores, out) == 0
    card = (out / "README.md").read_text()
    assert "0.875 [0.804, 0.923] | 40 (`mm_niah/retrieval-image-test`)" in card
    assert "20 + 20 steps" in card
    assert "2,400 samples, 100,000 tokens, 3.0 minutes" in card
    assert (out / "training_log.csv").read_text().splitlines() == [
        "run,step,loss,learning_rate,tokens_per_second",
        "1,10,2.5,0.001,9000",
        "2,10,2.5,0.001,9000",
    ]


def test_an_unfinished_evaluation_changes_nothing(run, scores, tmp_path, capsys):
    out = tmp_path / "tiny"
    assert publish(run, scores, out) == 0
    before = (out / "README.md").read_text()
    shutil.rmtree(scores / "vqa")
    assert publish(run, scores, out) == 2
    assert "vqa/chartqa-test-augmented" in capsys.readouterr().err
    assert (out / "README.md").read_text() == before
