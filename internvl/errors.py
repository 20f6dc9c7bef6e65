"""The project's errors under one name (they are defined beside the model, which must stay self-contained)."""

from internvl.model.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EvalError,
    InternVLError,
    MissingDependencyError,
    ParallelError,
    did_you_mean,
)

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EvalError",
    "InternVLError",
    "MissingDependencyError",
    "ParallelError",
    "did_you_mean",
]
