"""Results on disk: the three files of a task's folder, each parsed once into frozen records.

    RUN/GROUP/TASK/settings.json      what the predictions were made with       -> SavedSettings
    RUN/GROUP/TASK/predictions.jsonl  one answered question per line            -> Prediction
    RUN/GROUP/TASK/scores.json        numbers under every scoring rule          -> TaskResult

A damaged file is an EvalError that names the file, the line and the field.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from eval.core.baselines import Baselines
from eval.core.fields import KEY, WHOLE, parse_record
from eval.core.records import JsonObject
from eval.core.sample import Prediction
from eval.metrics.estimate import Estimate
from internvl.data.natural_order import natural_key
from internvl.errors import ConfigError, DataError, EvalError

SCORES_NAME = "scores.json"
SETTINGS_NAME = "settings.json"
PREDICTIONS_NAME = "predictions.jsonl"
_NUM_NAMED = 5  # of many lines, questions or tasks in one message


@dataclass(frozen=True)
class Settings:
    """Everything that the answers of a task depend on."""

    # All settings as they are stored; two results are comparable where these agree.
    values: JsonObject = field(metadata={KEY: WHOLE})
    task: str = ""  # name of the task; empty where none was written down
    task_version: int | None = None  # version of the task; None where none was written down
    prompts: str = "upstream"  # whose prompts were used
    rope_pos_id_version: str = "unknown positions"  # how positions were made
    rope_pos_id_stride: float | None = None  # positions that one tile spans; None unless the stride is fixed
    rope_scaling: str | None = None  # scaling of rotary positions, such as `yarn:4`; None: the checkpoint's own
    logn_scaling: float | None = None  # training length of log-n scaling; None: the checkpoint's own
    ablate: str | None = None  # what was done to the pictures (`eval.core.ablation`); None: nothing


@dataclass(frozen=True)
class SavedSettings:
    """A settings.json."""

    fingerprint: str  # hash of the settings that every line of `parts/` carries
    settings: Settings  # what the predictions were made with
    # What an answer does not depend on: paths for readers, number of questions, context lengths that scores are cut at.
    info: Mapping[str, str] = field(default_factory=dict)
    num_samples: int | None = None
    length_bins: list[int] | None = None


@dataclass(frozen=True)
class LengthBin:
    """The questions whose contexts are about the same length."""

    low: int | None  # shortest context in tokens; None: open
    high: int | None  # first length that is too long; None: open
    score: float
    stderr: float  # its standard error
    count: int
    chance: float | None  # score of guessing; None where it is not known

    def __post_init__(self) -> None:
        """Refuse what intervals cannot be computed from."""
        check_share(self.score, self.count)

    @property
    def estimate(self) -> Estimate:
        """The score with its standard error."""
        return Estimate(self.score, self.stderr, self.count)


@dataclass(frozen=True)
class DepthGrid:
    """Scores by context length and by depth of the needle."""

    lengths: Sequence[str]  # labels of the length bins
    depths: Sequence[float]  # left edges of the depth cells, in shares of the context
    score_sums: Sequence[Sequence[float]]  # sum of scores by (length, depth)
    counts: Sequence[Sequence[int]]  # questions by (length, depth)

    def __post_init__(self) -> None:
        """Refuse tables of another shape, and tables without questions."""
        for name, table in (("score_sums", self.score_sums), ("counts", self.counts)):
            if len(table) != len(self.lengths) or any(len(row) != len(self.depths) for row in table):
                raise DataError(
                    f"{name} has another shape than {len(self.lengths)} lengths by {len(self.depths)} depths"
                )
        if not any(map(any, self.counts)):
            raise DataError("counts has no questions")


@dataclass(frozen=True)
class Scores:
    """Numbers of one task under one scoring rule."""

    score: float | None  # the task's number; None where no answer is public
    stderr: float | None  # its standard error; None likewise
    count: int
    num_failed: int  # questions without a response
    num_empty: int  # questions with an empty response
    chance: float | None  # score of guessing; None where it is not known
    numbers: JsonObject = field(metadata={KEY: WHOLE})  # the stored object, for what only the task itself knows
    by_length: tuple[LengthBin, ...] = ()  # bins of context lengths, from short to long; empty where the task has none
    by_depth_and_length: DepthGrid | None = None  # of tasks about needles
    needs_judge: str | None = None  # the rule of a judge that has yet to score the answers
    # What answers get that do not look at the question; None without public answers.
    baselines: Baselines | None = field(default=None, metadata={KEY: "floors"})

    def __post_init__(self) -> None:
        """Refuse what intervals cannot be computed from."""
        check_share(self.score or 0.0, self.count)

    @property
    def estimate(self) -> Estimate | None:
        """The score with its standard error; None where no answer is public."""
        if self.score is None or self.stderr is None:
            return None
        return Estimate(self.score, self.stderr, self.count)


@dataclass(frozen=True)
class TaskResult:
    """A scores.json."""

    task: str  # `group/task`
    version: int  # version of the task
    source: str  # where data and rules were published
    protocol: str  # the rule of the headline number
    settings: Settings  # what the predictions were made with
    scores: Mapping[str, Scores] = field(metadata={KEY: "results"})  # by scoring rule
    folder: Path  # where the file lies
    content: JsonObject = field(metadata={KEY: WHOLE})  # the stored object, for the groups' own summaries
    info: Mapping[str, str] = field(default_factory=dict)  # paths for readers

    def __post_init__(self) -> None:
        """Refuse a headline without numbers."""
        if self.protocol not in self.scores:
            raise DataError(
                f"results has the rules {sorted(self.scores)}, expected the headline's {self.protocol!r} among them"
            )

    @property
    def headline(self) -> Scores:
        """The numbers under the rule of the headline."""
        return self.scores[self.protocol]

    @property
    def run_folder(self) -> Path:
        """The result folder of the run: `RUN` of `RUN/GROUP/TASK`; the task's own folder where it was moved."""
        return find_run_folder(self.folder, self.task)


def check_share(score: float, count: int) -> None:
    """Raise DataError unless `score` can be the share of right answers among `count`."""
    if count < 1 or not 0 <= score <= 1:
        raise DataError(f"{count} questions with score {score}, expected some questions and a score in 0..1")


def find_run_folder(folder: Path, task: str) -> Path:
    """`RUN` of a folder `RUN/GROUP/TASK`; the folder itself where it was moved out of its run."""
    folder, name = folder.resolve(), Path(task).parts
    return folder.parents[len(name) - 1] if folder.parts[-len(name) :] == name else folder


def find_results(folders: Sequence[Path]) -> list[TaskResult]:
    """Every scores.json below the folders, once, in natural order inside a folder (`eval_16` before `eval_256`).

    Raises EvalError for a folder without results, or a broken file.
    """
    results: dict[Path, TaskResult] = {}
    for folder in folders:
        paths = sorted(folder.rglob(SCORES_NAME), key=lambda path: natural_key(str(path), decimals=True))
        if not paths:
            raise EvalError(f"{folder} holds no {SCORES_NAME}; expected a result folder of eval.run")
        for path in paths:
            if path.resolve() not in results:
                results[path.resolve()] = read_result(path)
    return list(results.values())


def read_result(path: Path) -> TaskResult:
    """A scores.json. Raises EvalError if it is missing or not JSON, or a field is missing or of a wrong type."""
    with explain_damage(f"{path} is broken", f"make it again with python -m eval.score {path.parent}"):
        return parse_result(_load(path.read_bytes()), path.parent)


def parse_result(content: JsonObject, folder: Path) -> TaskResult:
    """The record of a scores.json in `folder`. Raises DataError if a field is missing or of a wrong type."""
    return parse_record(TaskResult, content, given={"folder": folder})


def read_settings(folder: Path) -> SavedSettings:
    """A task's settings.json. Raises EvalError if it is missing or not JSON, or a field is missing or wrong."""
    path = folder / SETTINGS_NAME
    problem = f"{path} says what the predictions beside it were made with, but cannot be read"
    with explain_damage(problem, "choose another --out, or pass --overwrite"):
        return parse_record(SavedSettings, _load(path.read_bytes()))


def read_predictions(folder: Path) -> list[Prediction]:
    """The finished predictions of a task's folder, every sample once.

    Lines that say the same count once. Raises EvalError if the file is missing or cut off, or which names the lines
    that are broken or hold two different answers of a sample.
    """
    path = folder / PREDICTIONS_NAME
    if not path.is_file():
        raise EvalError(f"{path} not found; the task is not finished: start the same eval.run command again")
    if not path.read_bytes().endswith(b"\n"):
        raise EvalError(f"{path} is empty or ends in the middle of a line; start the same eval.run command again")
    predictions: dict[str, tuple[int, Prediction]] = {}
    problems: list[str] = []
    for number, prediction, _ in read_prediction_lines(path, problems):
        first, earlier = predictions.setdefault(prediction.id, (number, prediction))
        if not earlier.is_same_answer(prediction):
            problems.append(f"lines {first} and {number} hold different answers of sample {prediction.id!r}")
    refuse_lines(path, problems, "delete one of two and what is broken, and start again")
    return [prediction for _, prediction in predictions.values()]


def read_prediction_lines(path: Path, problems: list[str]) -> Iterator[tuple[int, Prediction, object]]:
    """(line number from 1, prediction, fingerprint if it has one) of every finished line.

    What follows the last line break is not read: another process may be in the middle of writing it. Lines that are no
    JSON objects, or lack a field or have one of a wrong type, are left out and added to `problems`.
    """
    for number, line in enumerate(_read_bytes(path).split(b"\n")[:-1], start=1):
        try:
            record = _load(line)
            prediction = parse_record(Prediction, record)
        except (ValueError, DataError) as error:
            problems.append(f"line {number} is broken ({error})")
        else:
            yield number, prediction, record.get("fingerprint")


def refuse_lines(path: Path, problems: Sequence[str], remedy: str) -> None:
    """Raise EvalError that says what is wrong with the lines of a file, if anything is."""
    if problems:
        raise EvalError(f"{path} {name_first(problems, joint='; ')}; {remedy}")


def name_first(names: Sequence[str], *, joint: str = ", ") -> str:
    """The first names, and how many more there are."""
    num_more = len(names) - _NUM_NAMED
    return joint.join([*names[:_NUM_NAMED], *([f"and {num_more} more"] if num_more > 0 else [])])


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvalError(f"{path} cannot be read ({error})") from error


def _load(content: bytes) -> dict[str, object]:
    """A JSON object in UTF-8."""
    try:
        # NaN stays NaN, unlike in annotation files, so that predictions can be written again byte for byte.
        value = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise DataError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise DataError(f"it is a JSON {type(value).__name__}, expected an object")
    return value


@contextmanager
def explain_damage(problem: str, remedy: str) -> Iterator[None]:
    """Whatever damaged results let a block raise becomes one EvalError: which file, what is wrong, what to do.

    Gold answers, metadata and the groups' numbers are JSON of any form, so their readers raise errors of many kinds.
    """
    try:
        yield
    except (OSError, ValueError, ConfigError, DataError) as error:
        raise EvalError(f"{problem} ({error}); {remedy}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise EvalError(f"{problem} ({type(error).__name__}: {error}); {remedy}") from error
