import logging
import subprocess
from types import SimpleNamespace

import pytest

from internvl.train.run.counts import SOURCE_COUNTS, Counts
from internvl.train.run.metrics import (
    StepReport,
    Stopwatch,
    describe_sources,
    describe_window,
    format_bar,
    format_duration,
)
from tests.warm_python import warm_python

WINDOW = Counts.from_json(
    {
        "rows": 4,
        "samples": 9,
        "tokens": 1000,
        "targets": 300,
        "tiles": 10,
        "sources": {
            "a": dict(zip(SOURCE_COUNTS, (6, 700, 200, 40.0, 60.0), strict=True)),
            "b": dict(zip(SOURCE_COUNTS, (3, 300, 0, 0.0, 0.0), strict=True)),
        },
    },
    ("a", "b", "c"),
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rates_by_hand():
    described = describe_window(WINDOW, elapsed_s=5.0, num_processes=8, max_row_tokens=320)
    assert described == {
        "tokens_per_second": 200.0,
        "tokens_per_second_per_process": 25.0,
        "tiles_per_second": 2.0,
        "targets": 300,
        "tiles": 10,
        "samples": 9,
        "fill_rate": pytest.approx(1000 / 1280, abs=1e-4),
    }


def test_rows_without_a_limit_have_no_fill_rate():
    assert "fill_rate" not in describe_window(WINDOW, elapsed_s=5.0, num_processes=1)


def test_the_loss_of_a_data_set_is_its_own_weighted_mean():
    assert describe_sources(WINDOW) == {
        "loss/a": 1.5,
        "samples/a": 6,
        "tokens/a": 700,
        "samples/b": 3,
        "tokens/b": 300,
    }


def test_laps_and_the_time_that_is_left():
    clock = Clock()
    watch = Stopwatch(clock)
    assert watch.elapsed() == 0
    watch.start(20)
    clock.now += 6
    watch.start(21)
    assert watch.lap() == 6
    clock.now += 4
    assert watch.lap() == 4
    assert watch.elapsed() == 10
    assert watch.eta(25, 45) == 10 / 5 * 20
    assert watch.eta(45, 45) == 0


def test_a_clock_that_stands_still_does_not_divide_by_zero():
    watch = Stopwatch(Clock())
    watch.start(0)
    assert watch.lap() > 0


def test_peak_memory_grows_with_what_is_held_and_stays():
    code = """
import torch
from internvl.train.run.metrics import measure_peak_memory
before = measure_peak_memory()
kept = torch.ones(60_000_000)
held = measure_peak_memory()
del kept
print(before, held, measure_peak_memory())
"""  # in a process of its own: other tests have held more
    run = subprocess.run([warm_python(), "-c", code], capture_output=True, text=True, check=True)
    before, held, after = map(int, run.stdout.split())
    assert before > 2**24
    assert 200_000_000 < held - before < 400_000_000
    assert after == pytest.approx(held, abs=2**22)


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (61.6, "1:02"), (3599.9, "1:00:00"), (90061, "25:01:01")])
def test_durations_read_as_clocks(seconds, text):
    assert format_duration(seconds) == text


LOGS = {
    "loss": 1.2345678,
    "learning_rate": 1e-5,
    "tokens_per_second": 51234.0,
    "tokens_per_second_per_process": 6404.25,
    "mfu": 0.412,
    "fill_rate": 0.97,
    "peak_memory_gib": 61.25,
    "tiles_per_second": 12.0,
    "eta_s": 3661.0,
    "loss/a": 1.5,
    "loss/b": 0.5,
    "learning_rate/llm": 1e-5,
    "epoch": 0.1,
}


def test_the_bar_says_what_matters():
    words = format_bar(LOGS)
    for word in ("loss 1.235", "51.2k tok/s", "6.4k/", "MFU 41.2%", "fill 97%", "61.2 GiB", "12.0 tiles/s", "1:01:01"):
        assert word in words
    assert "bad" not in words
    assert "3 bad steps" in format_bar(LOGS | {"bad_steps": 3.0})
    assert "bad" not in format_bar(LOGS | {"bad_steps": 0.0})
    assert "MFU" not in format_bar({name: value for name, value in LOGS.items() if name != "mfu"})


class RecordedBar(list):
    def set_postfix_str(self, text):
        self.append(text)


@pytest.fixture
def report():
    report = StepReport(show_bar=True)
    report.training_bar = RecordedBar()
    return report


def say(report, logs, *, is_main=True):
    state = SimpleNamespace(is_world_process_zero=is_main, global_step=3, max_steps=9)
    report.on_log(None, state, None, logs=logs)


def test_a_report_is_a_line_and_one_of_data_sets(report, caplog):
    with caplog.at_level(logging.INFO):
        say(report, LOGS)
    line, sources = caplog.messages
    assert line.startswith("step 3/9  loss 1.2346  learning_rate 1e-05  tokens_per_second 51234")
    assert "learning_rate/llm" not in line
    assert "epoch" not in line
    assert sources.split() == ["loss/a", "1.5", "loss/b", "0.5"]
    assert report.training_bar == [format_bar(LOGS)]


def test_only_rank_0_reports_and_only_training_steps(report, caplog):
    with caplog.at_level(logging.INFO):
        say(report, LOGS, is_main=False)
        say(report, {"train_runtime": 3.0, "train_loss": 1.0})
    assert caplog.messages == []


def test_the_bar_goes_on_where_the_run_does():
    report = StepReport(show_bar=True)
    report.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, global_step=20, max_steps=60), None)
    assert (report.training_bar.n, report.training_bar.total) == (20, 60)
    report.on_step_end(None, SimpleNamespace(is_world_process_zero=True, global_step=21, max_steps=60), None)
    assert report.training_bar.n == 21
    report.on_train_end(None, SimpleNamespace(is_world_process_zero=True), None)


@pytest.mark.parametrize(("show_bar", "is_main"), [(False, True), (True, False)])
def test_other_ranks_and_files_get_no_bar(show_bar, is_main):
    report = StepReport(show_bar=show_bar)
    report.on_train_begin(None, SimpleNamespace(is_world_process_zero=is_main, global_step=0, max_steps=5), None)
    assert report.training_bar is None
