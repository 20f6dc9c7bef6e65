"""Preemption: a run that gets a signal finishes its step, saves a checkpoint, and ends with `EXIT_PREEMPTED`.

    signal to any rank -> flag -> end of the step: all ranks compare flags -> all save -> all stop
    USR1, TERM                    (largest of one number per rank)

Ranks end a step at different moments, and a signal may reach only one of them. A rank that acted on its own flag would
leave the others waiting in a collective; the comparison makes it one decision, at most one step late.

Batch systems signal every process of a job, DataLoader workers included, and a worker that dies ends the run. So
workers start with both signals blocked: a child inherits the mask of the thread that creates it, whatever handlers
torch then installs. They still end by their queue or when their parent is gone.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl.errors import InternVLError, ParallelError
from internvl.parallel.launch import read_rank_env

logger = logging.getLogger(__name__)

EXIT_PREEMPTED = 85  # stopped by a signal, checkpoint written: start the same command again (shell/job.sh requeues)
EXIT_FAILED_TWICE = 86  # the run fails without making progress: starting again does not help
_WAIT_FOR_FIRST_S = 60.0
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequest:
    """Which signal asked this process to stop, if any."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def note(self, number: int, _frame: object = None) -> None:
        """Handle a signal: remember it, do nothing else."""
        self.signal_name = self.signal_name or signal.Signals(number).name


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Turn SIGUSR1 and SIGTERM into a `StopRequest` within the block.

    In a thread other than the main one, where Python takes no signals, the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def write_errors_once(request: StopRequest) -> Iterator[None]:
    """Let the first process of each machine write an error that all of them meet.

    The others wait until the launcher stops them, which it does when the first has failed: had one of them ended
    before, the line might never be written. An error that the first does not meet is written after the wait.
    """
    try:
        is_first = read_rank_env().local_rank == 0
    except ParallelError:  # which is of no concern to --help
        is_first = True
    if is_first:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    except (InternVLError, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        deadline = time.monotonic() + _WAIT_FOR_FIRST_S
        while not request and time.monotonic() < deadline:
            time.sleep(0.1)
        if not request:
            raise
        raise SystemExit(2) from None


def any_rank(flag: bool, *, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set on any rank. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    number = torch.tensor([int(flag)], dtype=torch.int32, device=device)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return bool(number.item())


class StopAtStepEnd(TrainerCallback):
    """Saves a checkpoint and stops the Trainer after the step in which any rank was asked to stop."""

    def __init__(self, request: StopRequest):
        self.request = request
        self.stopped = False  # stays so when the run reached its last step in the meantime

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Block the signals until the DataLoader workers, which are created next, have inherited the mask."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    on_epoch_begin = on_train_begin

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Take signals again, those that came in the meantime included."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Ask all ranks; save and stop when one was told to."""
        if not any_rank(bool(self.request), device=args.device):
            return
        if self.request:
            logger.warning("%s: this process was asked to stop", self.request.signal_name)
        if state.global_step < state.max_steps:
            logger.info("stopping after step %d of %d, with a checkpoint", state.global_step, state.max_steps)
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
