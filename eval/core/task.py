"""Task: a benchmark as one record, which says where its data is and how answers are scored and averaged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.core.records import JsonObject
from eval.core.sample import Gold, Prediction, Sample
from eval.metrics.protocol import Protocol


@dataclass(frozen=True)
class Scored:
    """One scored answer, as an aggregation sees it.

    Attributes:
        score: In 0..1.
        metadata: The sample's.
        answer: The sample's.
        response: What the model said.
        protocol: The scoring rule.
    """

    score: float
    metadata: JsonObject
    answer: Gold = None
    response: str = ""
    protocol: Protocol = "official"


@dataclass(frozen=True)
class Upload:
    """The file that the benchmark's server accepts, for splits whose answers are not public.

    Attributes:
        name: File name inside the result folder.
        render: Predictions in sample order -> content.
    """

    name: str
    render: Callable[[Sequence[Prediction]], str]


@dataclass(frozen=True)
class Task:
    """One benchmark task.

    Attributes:
        name: `group/task`.
        version: To be raised when prompt or decoding change, so that predictions of two versions never mix.
        source: Where data and rules were published.
        annotation: Annotation file below the data root.
        read_samples: Data root -> samples in file order. Raises DataError for a bad record.
        max_new_tokens: Limit of an answer.
        max_num: Largest number of tiles per image (a thumbnail is not counted).
        score_answer: (gold answer, response, protocol) -> score in 0..1.
        protocols: Scoring rules, the first is the default.
        aggregate: (scored answers, length edges or None) -> further numbers for scores.json. `score` and `stderr`
            among them replace the mean over samples.
        details: Choices that are part of the prompt's identity, such as the prompt style.
        more_files: Further files below the data root that samples are read from.
        upload: The file for the benchmark's server; None: nothing to upload.
        num_frames: Frames per video; None: the task has no videos.
        folders: Folders below the data root that have to be there, if only with a part of their files.
        write_gold: Gold answer -> the text that is fed to the model instead of its own answer (teacher forcing, see
            eval/run/teacher_forcing.py); None: the model answers freely.
    """

    name: str
    version: int
    source: str
    annotation: Path
    read_samples: Callable[[Path], list[Sample]]
    max_new_tokens: int
    max_num: int
    score_answer: Callable[[Gold, str, Protocol], float]
    protocols: tuple[Protocol, ...] = ("official",)
    aggregate: Callable[[Sequence[Scored], Sequence[int] | None], JsonObject] = lambda scored, edges: {}
    details: JsonObject = field(default_factory=dict)
    more_files: tuple[Path, ...] = ()
    upload: Upload | None = None
    num_frames: int | None = None
    folders: tuple[Path, ...] = ()
    write_gold: Callable[[Gold], str] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files below the data root that samples are read from, except pictures and videos."""
        return (self.annotation, *self.more_files)


@dataclass(frozen=True)
class TaskFamily:
    """Tasks that share one module and differ by name.

    Attributes:
        names: Names (without the group) that a wildcard selects.
        make: (name without the group, prompt style) -> task; None when the family has no task of that name.
        summarise: (contents of scores.json by name without the group) -> numbers over several tasks.
    """

    names: tuple[str, ...]
    make: Callable[[str, str], Task | None]
    summarise: Callable[[Mapping[str, JsonObject]], JsonObject] = lambda results: {}
