"""The check of a card, at tiny size on the CPU: every part runs, what fails is reported, and pages are honest."""

import json
import re
import subprocess
import sys
import time
from importlib import import_module

import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import kernels, native, page, ring, training
from benchmarks.gpu_check.chat_model import build_config, make_row
from benchmarks.gpu_check.machine import ROOT, name_result
from benchmarks.gpu_check.part import CheckFailed, Job, Skipped
from benchmarks.gpu_check.run_part import main as run_here
from tests.warm_python import warm_python

CPU = torch.device("cpu")


@pytest.fixture
def job():
    return Job(CPU, time.monotonic() + 600)


# ------------------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("name", ["rates", "native", "inference", "training"])
def test_a_part_runs_at_tiny_size_on_the_cpu(name, job):
    rows = list(import_module(f"benchmarks.gpu_check.{name}").run(job))
    assert len(rows) >= 2
    assert all(row.get("tokens/s", 1) > 0 for row in rows)


def test_kernels_are_within_their_limits(job, monkeypatch):
    monkeypatch.setattr(kernels, "LIMITS", {torch.bfloat16: 3e-2})
    monkeypatch.setattr(kernels, "ROWS", {"three documents": [100, 1, 30]})
    rows = list(kernels.run(job))
    assert {row["function"] for row in rows} >= {"packed row", "cached keys", "rms_norm", "swiglu", "rotate"}
    assert all(0 < row["largest error"] < row["limit"] for row in rows)


def test_a_kernel_that_is_wrong_is_found(job, monkeypatch):
    monkeypatch.setattr(kernels, "rotate", lambda x, cos, sin: x)
    monkeypatch.setattr(kernels, "compare_all", lambda device, dtype, models: kernels.compare_fused(device, dtype))
    with pytest.raises(CheckFailed, match=r"2 beyond their limit: rotate, 300 x 256"):
        list(kernels.run(job))


def test_a_model_that_computes_something_else_is_found():
    native.check_agreement("prefill", [1.0, 1.01])
    for ours in (1.1, float("nan")):
        with pytest.raises(CheckFailed, match="this project's model gives"):
            native.check_agreement("prefill", [ours, 1.0])


def test_one_card_has_no_ring(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Skipped, match="one card"):
        list(ring.run(Job(torch.device("cuda:0"), time.monotonic() + 600)))


@pytest.mark.parametrize("most", [300, 512, 1000, 5000, 99999])
def test_the_longest_row_is_found_by_doubling_and_halving(most):
    bracket, tried = training.Bracket(256), []
    while (length := bracket.choose_next()) is not None:
        tried.append(length)
        bracket.note(length, fits=length <= most)
    assert bracket.fitting <= most < bracket.fitting * 9 / 8
    assert len(tried) <= 14


def test_a_row_that_does_not_fit_leaves_no_gradients(job, monkeypatch):
    trained = training.Training(job)
    row = make_row(trained.model.config, 64, CPU)
    trained.try_step(row)

    def break_off(model, row):
        parameter = next(model.parameters())
        parameter.grad = torch.zeros_like(parameter)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "compute_loss", break_off)
    assert trained.try_step(row) is None
    assert all(parameter.grad is None for parameter in trained.parameters)


def test_rows_are_packed_without_cutting_a_tile():
    config = build_config(tiny=True)
    row = make_row(config, 1000, CPU, document=300)
    visual = row.input_ids[0] == config.img_context_token_id
    assert row.cu_seqlens.tolist() == [0, 248, 496, 744, 1000]
    assert visual.sum() == len(row.pixel_values) * config.num_image_token
    assert not any(visual[border - 1] and visual[border] for border in row.cu_seqlens[1:-1])
    assert torch.equal(row.labels[0] == -100, visual)


# ---------------------------------------------------------------------------------------------------------- command


@pytest.mark.slow  # a minute: every part starts its own Python
def test_every_part_runs_without_a_card(tmp_path):
    command = [warm_python(), "-m", "benchmarks.gpu_check", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert {name: part["state"] for name, part in result["parts"].items()} == dict.fromkeys(gpu_check.PARTS, "done")
    assert all(part["rows"] for part in result["parts"].values())
    assert result["tiny"]
    (text,) = (path.read_text() for path in tmp_path.glob("*-cpu-tiny.md"))
    assert "its numbers say nothing about a GPU" in done.stdout
    assert page._TINY in text
    assert "tiny sizes on a CPU" in next(tmp_path.glob("*.svg")).read_text()


def test_a_part_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    parts = {"no_such_part": gpu_check.Part(0, "fails"), "rates": gpu_check.PARTS["rates"]}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(sys, "executable", warm_python())
    assert gpu_check.main(["--output", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("*.json")
    parts = json.loads(path.read_text())["parts"]
    assert parts["no_such_part"]["state"] == "failed"
    assert "No module named 'benchmarks.gpu_check.no_such_part'" in parts["no_such_part"]["reason"]
    assert parts["rates"]["state"] == "done"
    assert "no_such_part: failed" in path.with_suffix(".md").read_text()


def test_rows_before_a_failure_are_kept(tmp_path, monkeypatch, capsys):
    def run(job):
        yield {"first": 1.0}
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    monkeypatch.setattr("benchmarks.gpu_check.rates.run", run)
    monkeypatch.setattr(sys, "argv", ["run_part", "rates", str(tmp_path / "rows"), "60"])
    run_here()
    row, end = map(json.loads, (tmp_path / "rows").read_text().splitlines())
    assert row == {"row": {"first": 1.0}}
    assert end == {
        "state": "failed",
        "reason": "RuntimeError: CUDA error: an illegal memory access was encountered",
    }


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import os; os.abort()", "ended with code -6"), ("import time; time.sleep(60)", "stopped after 2 s")],
)
def test_a_process_that_dies_or_hangs_fails_its_part(code, reason, monkeypatch):
    popen = subprocess.Popen
    monkeypatch.setattr(
        gpu_check.subprocess, "Popen", lambda command, **rest: popen([sys.executable, "-S", "-c", code], **rest)
    )
    part = gpu_check.run_part("rates", 2.0)
    assert part["state"] == "failed"
    assert reason in part["reason"]


def test_parts_that_no_longer_fit_are_skipped_with_the_reason(tmp_path):
    assert gpu_check.main(["--output", str(tmp_path), "--minutes", "0.5", "--parts", "native", "ring"]) == 0
    (path,) = tmp_path.glob("*.json")
    for part in json.loads(path.read_text())["parts"].values():
        assert part["state"] == "skipped"
        assert re.match(r"needs about 60 s, and (30|29) s of --minutes 0.5 are left", part["reason"])


# ------------------------------------------------------------------------------------------------------------- pages


def test_the_page_is_what_the_command_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "PAGE", tmp_path / "gpu.md")
    assert gpu_check.main(["--page"]) == 0
    assert (tmp_path / "gpu.md").read_text() == page.PAGE.read_text()


def test_results_of_a_cpu_are_kept_from_those_of_cards(tmp_path, capsys):
    assert gpu_check.main(["--output", str(page.RESULTS)]) == 2
    assert "holds results of cards, and there is none here" in capsys.readouterr().err
    (tmp_path / "2026-01-01-cpu-tiny.json").write_text(json.dumps({"tiny": True, "machine": {"card": None}}))
    with pytest.raises(gpu_check.ConfigError, match="only results of cards belong here"):
        page.load_results(tmp_path)


def test_the_newest_result_of_every_card_is_on_the_page(tmp_path):
    for date, card, error in (
        ("2026-01-02", "NVIDIA H200", 0.1),
        ("2026-01-03", "NVIDIA H200", 0.25),
        ("2026-01-01", "L4", 0.5),
    ):
        machine = {"card": card, "date": date, "driver": "580.1", "commit": "abc1234"}
        rows = [{"row": "packed", "largest error": error, "peak": None}]
        parts = {
            "kernels": {"state": "done", "seconds": 3.0, "rows": rows},
            "ring": {"state": "skipped", "reason": "one card", "seconds": 0.0, "rows": []},
        }
        result = {"tiny": False, "machine": machine, "parts": parts}
        (tmp_path / f"{name_result(machine)}.json").write_text(json.dumps(result))
    text = page.make_page(page.load_results(tmp_path), {})
    assert re.findall(r"^### (.*)", text, re.MULTILINE) == ["L4, 2026-01-01", "NVIDIA H200, 2026-01-03"]
    assert "| row | largest error |\n| --- | --- |\n| packed | 0.25 |" in text
    assert "#### ring: skipped in 0 s: one card" in text
    assert "driver 580.1, commit abc1234." in text
    assert "measured on a card yet" not in text
