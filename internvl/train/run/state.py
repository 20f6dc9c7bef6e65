"""State of a run: OUTPUT_DIR/run_state.json, which the next start and the batch script (shell/job.sh) read.

    start -> running --+--> finished    starting again says so and ends
                       +--> preempted   a signal stopped it after saving a checkpoint; the next start resumes
                       +--> stopped     by an error that the user can correct, or by Ctrl-C
                       +--> (nothing)   the process died: the file still says `running`, and in which step

A run that dies again and again would do so for ever when it is requeued. Progress decides: after `MOST_FAILURES` starts
in a row that died without a checkpoint further on than the ones before, the next start refuses.
Rank 0 writes the file in one rename; all ranks read it before rank 0 writes.
"""

import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_type_hints

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl.atomic import write_json
from internvl.errors import CheckpointError, InternVLError
from internvl.train.run.preemption import EXIT_FAILED_TWICE
from internvl.train.state_files import find_wrong_type, read_state_file

logger = logging.getLogger(__name__)

STATE_FILE = "run_state.json"
LOADING = 0  # "step" of a run that has not begun its first one
_CHECKPOINT = re.compile(r"checkpoint-\d+")
MOST_FAILURES = 3  # shell/job.sh knows it as well

Status = Literal["running", "preempted", "stopped", "finished"]


class RepeatedFailure(InternVLError):
    """The run fails without making progress."""

    exit_code = EXIT_FAILED_TWICE


@dataclass(frozen=True)
class RunState:
    """Where a run is, or how it ended."""

    status: Status = "running"  # a run that died leaves `running`
    attempt: int = 1  # starts so far, from 1
    # optimiser step in progress (from 1; 0 while loading), or the last one done when the run has ended
    step: int = LOADING
    failed_step: int | None = None  # step in which the attempt before this one died; None when it did not
    checkpoint: str | None = None  # name of the last checkpoint folder that this run wrote, None before the first
    # starts in a row since the last progress, this one included unless it made some
    starts_without_progress: int = 1
    epochs: float | None = None  # --num_train_epochs; None where --max_steps decides

    def has_reached(self, *, max_steps: int, epochs: float) -> bool:
        """Whether a run of that length is done; `epochs` count where `max_steps` is not above 0."""
        if self.status != "finished":
            return False
        if max_steps > 0:
            return self.step >= max_steps
        return self.epochs is not None and self.epochs >= epochs

    def next_attempt(self) -> "RunState":
        """State of the start that follows this one.

        Raises:
            RepeatedFailure: This attempt died, as did those before it, and none made progress.
        """
        failed_step = self.step if self.status == "running" else None
        if failed_step is None:
            return RunState(attempt=self.attempt + 1, checkpoint=self.checkpoint)
        if self.starts_without_progress >= MOST_FAILURES:
            steps = dict.fromkeys(step for step in (self.failed_step, failed_step) if step is not None)
            where = " and ".join("while loading" if step == LOADING else f"in step {step}" for step in steps)
            raise RepeatedFailure(
                f"{self.starts_without_progress} starts in a row died without a new checkpoint, the last ones {where}, "
                "so the run is not tried again; look for the cause in training_log.txt and the job's log, then delete "
                f"{STATE_FILE} from the output folder and start again"
            )
        return RunState(
            attempt=self.attempt + 1,
            failed_step=failed_step,
            checkpoint=self.checkpoint,
            starts_without_progress=self.starts_without_progress + 1,
        )


def read_run_state(output_dir: str | Path) -> RunState | None:
    """The state that an earlier start left in `output_dir`; None when there was none.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = Path(output_dir, STATE_FILE)
    try:
        saved = read_state_file(path)
        problem = find_wrong_type(saved, get_type_hints(RunState))
        checkpoint = saved.get("checkpoint")
        if problem is None and checkpoint is not None and not _CHECKPOINT.fullmatch(checkpoint):
            problem = f"checkpoint is {checkpoint!r}, expected the name of a checkpoint folder"
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        problem = str(error)
    if problem is not None:
        raise CheckpointError(f"{path} is damaged ({problem}); delete it to start without it")
    return RunState(**saved)


class RunJournal(TrainerCallback):
    """Keeps run_state.json up to date while the Trainer runs; a context manager around one attempt.

    Every rank has one; only the one with `writes="main"` (rank 0) writes.
    """

    def __init__(self, output_dir: str | Path, state: RunState, *, writes: Literal["main", "never"]):
        self.output_dir = output_dir
        self.state = state
        self.writes = writes
        self._note()

    def __enter__(self) -> "RunJournal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, (InternVLError, KeyboardInterrupt)):
            self._note(status="stopped")

    def _note(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        if self.writes == "main":
            write_json(Path(self.output_dir, STATE_FILE), asdict(self.state))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Note the step in progress."""
        try:
            self._note(step=state.global_step + 1)
        except OSError as error:  # a file system that is out of reach for a while costs the note, not the run
            logger.warning("%s cannot be written: %s", STATE_FILE, error)

    def note_checkpoint(self, step: int) -> None:
        """Note a complete checkpoint, and whether the run got further than before."""
        before = self.state.checkpoint
        is_progress = before is None or step > int(before.rpartition("-")[2])
        failures = 0 if is_progress else self.state.starts_without_progress
        self._note(checkpoint=f"checkpoint-{step}", starts_without_progress=failures)

    def end(self, status: Status, *, step: int) -> None:
        """Note how the run ended."""
        self._note(status=status, step=step)
