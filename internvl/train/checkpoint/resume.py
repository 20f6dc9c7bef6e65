"""Resume: which checkpoint a run continues from. It is the last complete one of its output folder."""

import logging
from pathlib import Path

from internvl.errors import CheckpointError, ConfigError
from internvl.train.checkpoint.contents import (
    MARKER,
    TRAINER_STATE_FILE,
    find_problem,
    find_wrong_state,
    list_checkpoints,
    step_of,
)

logger = logging.getLogger(__name__)

_MODEL_PATTERNS = ("config.json", "*.safetensors", "pytorch_model*.bin")


def find_resume_checkpoint(output_dir: str, *, overwrite: bool, wanted: str | None = None) -> str | None:
    """Choose the checkpoint that a run continues from; None: it starts from the beginning, as with `overwrite`.

    An explicit folder, `wanted`, wins, unless it is one of this run and damaged.

    Raises:
        ConfigError: The folder holds a model but no checkpoint, or `wanted` does not exist.
        CheckpointError: Every candidate is damaged.
    """
    folder = Path(output_dir)
    if wanted is not None and wanted.lower() not in ("true", "false"):
        return _choose_wanted(Path(wanted), folder)
    if overwrite or not folder.is_dir():
        return None
    checkpoints = list_checkpoints(folder)
    # A finished model without checkpoints would be overwritten without a word.
    if not checkpoints and any(path.is_file() for pattern in _MODEL_PATTERNS for path in folder.glob(pattern)):
        raise ConfigError(
            f"--output_dir {output_dir} is not empty and holds no checkpoint to continue from; choose another folder, "
            "or pass --overwrite_output_dir True"
        )
    return _choose_complete(checkpoints)


def _choose_wanted(wanted: Path, output_dir: Path) -> str | None:
    """A damaged checkpoint of the run's own folder gives way to the one before it."""
    if not (wanted / TRAINER_STATE_FILE).is_file():
        raise ConfigError(f"--resume_from_checkpoint {wanted}: no such checkpoint (it has no {TRAINER_STATE_FILE})")
    if not (wanted / MARKER).is_file():
        if problem := find_wrong_state(wanted):
            raise CheckpointError(f"--resume_from_checkpoint {wanted}: {problem}; resume from another checkpoint")
        logger.warning("%s has no %s: whether it is complete is not known", wanted, MARKER)
        return str(wanted)
    own = list_checkpoints(output_dir) if output_dir.is_dir() else []
    if wanted.resolve() in [path.resolve() for path in own]:
        return _choose_complete([path for path in own if step_of(path) <= step_of(wanted)])
    return _choose_complete([wanted])


def _choose_complete(checkpoints: list[Path]) -> str | None:
    problems: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints):
        problem = find_problem(checkpoint)
        if problem is None:
            for damaged, cause in problems.items():
                logger.warning("%s is damaged (%s): continuing from %s instead", damaged, cause, checkpoint.name)
            return str(checkpoint)
        problems[checkpoint] = problem
    if problems:
        causes = "".join(f"\n  {checkpoint}: {problem}" for checkpoint, problem in problems.items())
        raise CheckpointError(
            f"none of the checkpoints is complete:{causes}\ndelete them (or pass --overwrite_output_dir True) to start "
            "from the beginning, or name one with --resume_from_checkpoint"
        )
    return None
