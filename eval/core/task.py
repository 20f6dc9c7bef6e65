"""Task: a benchmark as one record, which says where its data is and how answers are scored and averaged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.core.data_root import Root
from eval.core.judge import JudgeRule
from eval.core.records import JsonObject
from eval.core.sample import Gold, Prediction, Sample
from eval.metrics.protocol import Protocol


@dataclass(frozen=True)
class Scored:
    """One scored answer, as an aggregation sees it."""

    score: float  # in 0..1
    metadata: JsonObject
    answer: Gold = None
    response: str = ""
    protocol: Protocol = "official"  # the scoring rule


@dataclass(frozen=True)
class Upload:
    """A file that the benchmark's server accepts, for splits whose answers are not public."""

    name: str  # file name inside the result folder
    render: Callable[[Sequence[Prediction]], str | bytes]  # predictions in sample order -> content


@dataclass(frozen=True)
class Task:
    """One benchmark task."""

    name: str  # `group/task`
    version: int  # raised when prompt or decoding change, so that predictions of two versions never mix
    source: str  # where data and rules were published
    annotation: Path  # annotation file below the data root
    # data root -> samples in file order; raises DataError for a bad record
    read_samples: Callable[[Root], list[Sample]]
    max_new_tokens: int
    max_num: int  # largest number of tiles per image, without the thumbnail
    score_answer: Callable[[Gold, str, Protocol], float]  # (gold answer, response, protocol) -> score in 0..1
    protocols: tuple[Protocol, ...] = ("official",)  # scoring rules; the first is the default
    # (scored answers, length edges or None) -> more numbers; `score` and `stderr` replace the mean over samples
    aggregate: Callable[[Sequence[Scored], Sequence[int] | None], JsonObject] = lambda scored, edges: {}
    # choices that are part of the prompt's identity, such as the prompt style
    details: JsonObject = field(default_factory=dict)
    # where a benchmark of the user's own is described, which answers do not depend on
    info: Mapping[str, str] = field(default_factory=dict)
    more_files: tuple[Path, ...] = ()  # further files below the data root that samples are read from
    optional_files: tuple[Path, ...] = ()  # likewise, but samples can be read without them
    uploads: tuple[Upload, ...] = ()  # files for the benchmark's server
    num_frames: int | None = None  # frames per video; None: the task has no videos
    # folders below the data root that must exist, even if some of their files are missing
    folders: tuple[Path, ...] = ()
    fetch: Callable[[], None] | None = None  # gets the files from elsewhere; None: they must be there
    # gold answer -> the text fed instead of the model's own (teacher forcing); None: it answers freely
    write_gold: Callable[[Gold], str] | None = None
    # What a judge is asked about each answer: its verdicts are the scores, and `score_answer` is not used. Without a
    # judge the task has no score. None: the rule scores
    judge: JudgeRule | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files below the data root that samples are read from, except pictures and videos."""
        return (self.annotation, *self.more_files)

    def fetch_missing(self, data_root: Root) -> None:
        """Get files that are not there, if the task knows how. Raises EvalError if they are out of reach."""
        if self.fetch is not None and not all((data_root / file).is_file() for file in self.files):
            self.fetch()


@dataclass(frozen=True)
class TaskFamily:
    """Tasks that share one module and differ by name."""

    names: tuple[str, ...]  # names without the group that a wildcard selects
    # (name without the group, prompt style) -> task; None when the family has no such task
    make: Callable[[str, str], Task | None]
    # contents of scores.json by name without the group -> numbers over several tasks
    summarise: Callable[[Mapping[str, JsonObject]], JsonObject] = lambda results: {}
