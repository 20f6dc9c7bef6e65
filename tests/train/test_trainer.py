"""Hooks of the Trainer that need no run."""

from types import SimpleNamespace

import pytest
import torch

from internvl.train.trainer import V2PETrainer


@pytest.mark.parametrize("is_pinned", [True, False])
def test_pinned_batches_go_to_the_device_without_waiting(monkeypatch, is_pinned):
    trainer = V2PETrainer.__new__(V2PETrainer)
    trainer.args, trainer.is_deepspeed_enabled = SimpleNamespace(device=torch.device("cpu")), False
    waited = []
    to = torch.Tensor.to

    def note(self, *args, non_blocking=False, **kwargs):
        waited.append(not non_blocking)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: is_pinned)
    monkeypatch.setattr(torch.Tensor, "to", note)
    batch = {"input_ids": torch.arange(3)}
    assert trainer._prepare_inputs(batch)["input_ids"].tolist() == [0, 1, 2]
    assert waited[0] is not is_pinned
