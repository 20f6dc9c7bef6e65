"""State of a run: OUTPUT_DIR/run_state.json, which the next start and the batch script (shell/job.sh) read.

    start -> running --+--> finished    starting again says so and ends
                       +--> preempted   a signal stopped it after saving a checkpoint; the next start resumes
                       +--> stopped     by an error that the user can correct, or by Ctrl-C
                       +--> (nothing)   the process died: the file still says `running`, and in which step

A run that dies in the same step twice in a row would do so forever when it is requeued, so the third start refuses.
Rank 0 writes the file in one rename; all ranks read it before rank 0 writes.
"""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl.atomic import write_json
from internvl.errors import CheckpointError, InternVLError

logger = logging.getLogger(__name__)

STATE_FILE = "run_state.json"
LOADING = 0  # "step" of a run that has not begun its first one

Status = Literal["running", "preempted", "stopped", "finished"]


class RepeatedFailure(InternVLError):
    """The run failed in the same step twice in a row."""


@dataclass(frozen=True)
class RunState:
    """Where a run is, or how it ended."""

    status: Status = "running"  # a run that died leaves `running`
    attempt: int = 1  # starts so far, from 1
    # optimiser step in progress (from 1; 0 while loading), or the last one done when the run has ended
    step: int = LOADING
    failed_step: int | None = None  # step in which the attempt before this one died; None when it did not
    checkpoint: str | None = None  # name of the last checkpoint folder that this run wrote, None before the first

    def next_attempt(self) -> "RunState":
        """State of the start that follows this one.

        Raises:
            RepeatedFailure: This attempt died in the same step as the one before.
        """
        failed_step = self.step if self.status == "running" else None
        if failed_step is not None and failed_step == self.failed_step:
            where = "while loading" if failed_step == LOADING else f"in step {failed_step}"
            raise RepeatedFailure(
                f"the run failed {where} twice in a row, so it is not tried again; look for the cause in "
                f"training_log.txt and the job's log, then delete {STATE_FILE} from the output folder and start again"
            )
        return RunState(attempt=self.attempt + 1, failed_step=failed_step, checkpoint=self.checkpoint)


def read_run_state(output_dir: str | Path) -> RunState | None:
    """The state that an earlier start left in `output_dir`; None when there was none.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = Path(output_dir, STATE_FILE)
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to start without it") from error


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

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Note the checkpoint, which is complete now."""
        self._note(checkpoint=f"checkpoint-{state.global_step}")

    def end(self, status: Status, *, step: int) -> None:
        """Note how the run ended."""
        self._note(status=status, step=step)
