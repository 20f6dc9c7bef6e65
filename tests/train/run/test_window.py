import math

import pytest
import torch

from internvl.train.run.counts import RunTotals
from internvl.train.run.window import Window


def make_row(*lengths, tiles=1):
    """Documents of data set `a`, half of whose tokens are targets."""
    borders = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    labels = torch.arange(int(borders[-1])) % 2 * 107 - 100
    refs = torch.tensor([[0, row] for row in range(len(lengths))])
    pixels = torch.zeros(tiles, 3, 2, 2)
    return {"cu_seqlens": borders, "labels": labels[None], "document_refs": refs, "pixel_values": pixels}


def take_step(window, *lengths, step=0, is_good=True):
    window.begin_step(step, {"llm": 0.5, "vit": 0.25})
    window.rows.note(make_row(*lengths))
    window.end_step(is_taken=is_good)
    if not is_good:
        window.count_bad_step()


def gather_twins(tensor):
    """Two ranks with the same counts."""
    return tensor.repeat(2, 1)


def report(window, **logs):
    window.collect(gather_twins, num_skipped=3, device="cpu")
    logs = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, **logs}
    window.report(logs, step=4, max_steps=8, num_processes=2)
    return logs


def test_a_report_covers_the_steps_since_the_last_one_on_all_ranks():
    window = Window(["a", "b"], max_row_tokens=16)
    take_step(window, 6, 4)
    first = report(window)
    assert (first["samples"], first["targets"], first["tiles"], first["tokens/a"]) == (4, 10, 2, 20)
    assert first["fill_rate"] == round(20 / 32, 4)
    assert (first["skipped_documents"], first["bad_steps"]) == (6, 0)
    assert not [name for name in first if name.endswith("/b")]
    take_step(window, 8)
    assert report(window)["samples"] == 2
    assert window.totals.counts["tokens"] == 36


def test_the_learning_rate_is_that_of_the_step_and_not_of_the_next_one():
    window = Window(["a"])
    take_step(window, 4)
    logs = report(window)
    assert (logs["learning_rate"], logs["learning_rate/llm"], logs["learning_rate/vit"]) == (0.5, 0.5, 0.25)


def test_a_run_that_is_shorter_than_a_report_has_its_mean_loss_as_its_last_one(tmp_path):
    window = Window(["a"])
    assert window.summarise("finished", step=4, log_history=[{"train_loss": 0.0}], folder=tmp_path).final_loss is None
    take_step(window, 4)
    summary = window.summarise("finished", step=1, log_history=[{"train_loss": 9.0}], folder=tmp_path)
    assert summary.final_loss == 9.0
    assert not [line for line in summary.describe() if "none" in line.lower()]


def test_left_out_steps_count_neither_in_the_loss_nor_in_the_rows():
    window = Window(["a"])
    for is_good in (True, False, True, True):
        take_step(window, 4, is_good=is_good)
    logs = report(window, loss=3.0, grad_norm=math.nan)
    assert logs["loss"] == pytest.approx(3.0 * 4 / 3)
    assert "grad_norm" not in logs
    assert (logs["samples"], logs["bad_steps"]) == (6, 1)
    assert window.correct_mean_loss(3.0) == pytest.approx(3.0 * 4 / 3)


def test_a_window_of_bad_steps_has_no_loss():
    window = Window(["a"])
    take_step(window, 4, is_good=False)
    assert "loss" not in report(window)


def test_the_summary_adds_the_starts_before(tmp_path):
    first = Window(["a"])
    take_step(first, 4)
    first.collect(gather_twins, num_skipped=0, device="cpu")
    window = Window(["a"])
    window.totals = RunTotals(first.totals.counts, seconds=100.0, bad_steps=2)
    take_step(window, 6, step=1)
    window.collect(gather_twins, num_skipped=0, device="cpu")
    summary = window.summarise("finished", step=2, log_history=[{"loss": 3.0}, {"train_loss": 9.0}], folder=tmp_path)
    assert (summary.counts["tokens"], summary.bad_steps, summary.final_loss) == (20, 2, 3.0)
    assert summary.seconds > 100
    assert (summary.steps, summary.steps_this_start) == (2, 1)
