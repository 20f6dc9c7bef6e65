"""What a run sends to other programs' logs."""

import os

import pytest

from tests.train.tiny_run import ENTRY, flags, launch, tail


def test_an_offline_run_of_weights_and_biases_holds_our_numbers(checkpoint, meta, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    arguments = flags(checkpoint, meta, tmp_path / "out", report_to="wandb", max_steps=2, run_name="ours")
    result = launch(ENTRY, arguments, num_processes=1)
    assert result.returncode == 0, tail(result)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    for name in (b"train/loss", b"train/tokens_per_second", b"train/loss/tiny", b"rope_pos_id_version", b"ours"):
        assert name in content, name
    assert os.path.exists(tmp_path / "out" / "model.safetensors")
