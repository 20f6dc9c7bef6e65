import os
import signal
import threading
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerControl, TrainerState

from internvl.errors import ConfigError
from internvl.train.run import preemption
from internvl.train.run.preemption import (
    STOP_SIGNALS,
    StopAtStepEnd,
    StopRequest,
    any_rank,
    listen_for_stop,
    write_errors_once,
)

ARGS = SimpleNamespace(device=torch.device("cpu"))


def blocked_signals() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


class BlockedInWorker(IterableDataset):
    """Yields the signals that are blocked where it is iterated."""

    def __iter__(self):
        yield sorted(int(number) for number in blocked_signals())


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_becomes_a_request(number):
    before = signal.getsignal(number)
    with listen_for_stop() as request:
        assert not request
        os.kill(os.getpid(), number)
        assert request
        assert request.signal_name == number.name
    assert signal.getsignal(number) == before


def test_a_thread_gets_a_request_that_stays_empty():
    seen = []

    def listen():
        with listen_for_stop() as request:
            seen.append(bool(request))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [False]


def test_of_one_process_its_own_flag_counts():
    assert any_rank(True)
    assert not any_rank(False)


def test_workers_never_take_the_signals_and_the_process_takes_them_late():
    with listen_for_stop() as request:
        callback, control = StopAtStepEnd(request), TrainerControl()
        callback.on_train_begin(ARGS, TrainerState(), control)
        rows = iter(DataLoader(BlockedInWorker(), batch_size=None, num_workers=1))
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert not request
        callback.on_step_begin(ARGS, TrainerState(), control)
        assert request
        assert set(next(rows)) >= set(STOP_SIGNALS)
    assert not blocked_signals() & set(STOP_SIGNALS)


def end_of_step(step: int, *signals: signal.Signals) -> tuple[StopAtStepEnd, TrainerControl]:
    request, control = StopRequest(), TrainerControl()
    for number in signals:
        request.note(number)
    callback = StopAtStepEnd(request)
    callback.on_step_end(ARGS, TrainerState(global_step=step, max_steps=10), control)
    return callback, control


def test_a_requested_stop_saves_behind_the_step():
    callback, control = end_of_step(4, signal.SIGTERM)
    assert callback.stopped
    assert control.should_save
    assert control.should_training_stop


@pytest.mark.parametrize(("step", "signals"), [(4, ()), (10, (signal.SIGTERM,))])
def test_nothing_happens_without_a_request_or_behind_the_last_step(step, signals):
    callback, control = end_of_step(step, *signals)
    assert not callback.stopped
    assert not control.should_save
    assert not control.should_training_stop


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is the second one of its machine."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LAUNCHER", raising=False)


def test_an_error_of_all_processes_is_written_by_the_first(monkeypatch):
    monkeypatch.setenv("LAUNCHER", "none")
    with pytest.raises(ConfigError), write_errors_once(StopRequest()):
        raise ConfigError("wrong flag")


def test_the_others_wait_until_they_are_stopped_and_write_nothing(second_of_two, capfd):
    request = StopRequest()
    request.note(signal.SIGTERM)
    parser = ArgumentParser()
    with pytest.raises(SystemExit) as end, write_errors_once(request):
        parser.parse_args(["--unknown"])
    assert end.value.code == 2
    assert capfd.readouterr().err == ""


def test_an_error_that_the_first_does_not_meet_is_written_after_the_wait(second_of_two, monkeypatch):
    monkeypatch.setattr(preemption, "_WAIT_FOR_FIRST_S", 0.1)
    with pytest.raises(ConfigError, match="no GPU here"), write_errors_once(StopRequest()):
        raise ConfigError("no GPU here")
