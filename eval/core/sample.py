"""The two records of an evaluation: what the model is asked, and what it answered."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from internvl.errors import EvalError


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: Unique within its task.
        prompt: User message with one `<image>` per image, in order.
        images: Image files.
        answer: The gold answer in the form that the task's scorer takes.
        metadata: JSON values that scoring and reports need later (context length, depth, chance level, ...).
        cost: Estimated tokens of the prompt; long samples run first.
    """

    id: str
    prompt: str
    images: tuple[Path, ...]
    answer: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """One answered question: a line of a predictions file.

    Attributes:
        id: The sample's.
        response: What the model said; empty for a failed sample.
        answer: The gold answer, so that scoring needs no annotation file.
        metadata: The sample's.
        num_prompt_tokens: Tokens of the prompt, visual ones included.
        num_tiles: Tiles of all images.
        last_position: Rotary position of the last prompt token.
        seconds: Time from question to answer.
        failure: Why there is no response (counted as wrong); None when there is one.
    """

    id: str
    response: str
    answer: Any
    metadata: Mapping[str, Any]
    num_prompt_tokens: int
    num_tiles: int
    last_position: float
    seconds: float
    failure: str | None = None

    def to_record(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Prediction":
        """Inverse of `to_record`; further keys are ignored.

        Raises:
            EvalError: A field is missing.
        """
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in record]
        if missing:
            raise EvalError(f"a prediction lacks {', '.join(missing)}; delete the file and evaluate again")
        return cls(**{name: record[name] for name in names})
