"""A benchmark as data: where its records are, how a record becomes a prompt, how an answer is scored and summed up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.core.sample import Sample


@dataclass(frozen=True)
class Scored:
    """One scored answer: what an aggregation sees.

    Attributes:
        score: In 0..1.
        metadata: The sample's.
    """

    score: float
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One benchmark task.

    Attributes:
        name: `group/task`.
        version: Raise it when prompt or decoding change: predictions made under another version are not mixed in.
        source: Where data and rules were published.
        annotation: Annotation file below the data root.
        read_samples: Data root -> samples in file order. Raises DataError for a bad record.
        max_new_tokens: Limit of an answer.
        max_num: Largest number of tiles per image (a thumbnail is not counted).
        score_answer: (answer, response, protocol) -> score in 0..1.
        protocols: Scoring rules, the first is the default.
        aggregate: (scored answers, length edges or None) -> further numbers for the report.
        details: Choices that are part of the prompt's identity, such as the prompt style.
    """

    name: str
    version: int
    source: str
    annotation: Path
    read_samples: Callable[[Path], list[Sample]]
    max_new_tokens: int
    max_num: int
    score_answer: Callable[[Any, str, str], float]
    protocols: tuple[str, ...] = ("official",)
    aggregate: Callable[[Sequence[Scored], Sequence[int] | None], dict[str, Any]] = lambda scored, edges: {}
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskFamily:
    """Tasks that share one file and differ by name.

    Attributes:
        names: Names (without the group) that a wildcard selects.
        make: (name without the group, prompt style) -> task; None when the family has no task of that name.
        summarise: (contents of scores.json by name without the group) -> numbers over several tasks.
    """

    names: tuple[str, ...]
    make: Callable[[str, str], Task | None]
    summarise: Callable[[Mapping[str, Mapping[str, Any]]], dict[str, Any]] = lambda results: {}
