"""Parts of benchmarks/gpu_check on a device that is not there: tensors of both devices do not meet."""

from unittest.mock import patch

import pytest
import torch

from benchmarks.gpu_check import chat_model, kernels, native, training
from benchmarks.gpu_check.part import Job

from .pretend import DEVICE, PretendedCuda


def compare_kernels() -> tuple[dict[str, float], int]:
    """Largest error by function, and how often tensors of both devices met."""
    with PretendedCuda() as cuda, patch.object(kernels, "ROWS", {"three documents": [30, 1, 9]}):
        errors: dict[str, float] = {}
        for name, _, error in kernels.compare_all(DEVICE, torch.bfloat16, ["InternVL2-1B"]):
            errors[name] = max(error, errors.get(name, 0.0))
    return errors, cuda.counts.mixed.total()


def train_and_prefill() -> tuple[list[float], int]:
    """Losses of transformers' model and of ours, a largest logit of each, and how often tensors of both devices met."""
    config = chat_model.build_config(tiny=True)
    with PretendedCuda() as cuda:
        ours = chat_model.build_model(Job(torch.device("cpu"), 0.0))
        models = [cuda.move(model) for model in (native.build_native(ours), ours)]
        row = chat_model.make_row(config, 64, DEVICE)
        training.compute_loss(models[1].train(), row).backward()
        found = [float(work(model, row).cpu()) for work in (native.train, native.prefill) for model in models]
    return found, cuda.counts.mixed.total()


def test_kernels_compare_on_their_device(without_a_card):
    errors, mixed = without_a_card(compare_kernels)
    assert {"ring of one, default kernel", "packed row", "cached keys", "rms_norm", "swiglu", "rotate"} <= errors.keys()
    assert max(errors.values()) < 3e-2
    assert mixed == 0


def test_both_models_run_on_their_device(without_a_card):
    (their_loss, loss, their_logit, logit), mixed = without_a_card(train_and_prefill)
    assert loss == pytest.approx(their_loss, rel=0.02)
    assert logit == pytest.approx(their_logit, rel=0.02)
    assert mixed == 0
