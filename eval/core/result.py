"""Results on disk: the three files of a task's folder, each parsed once into frozen records.

    RUN/GROUP/TASK/settings.json      what the predictions were made with       -> SavedSettings
    RUN/GROUP/TASK/predictions.jsonl  one answered question per line            -> Prediction
    RUN/GROUP/TASK/scores.json        numbers under every scoring rule          -> TaskResult

A damaged file is an EvalError that names the file, the line and the field.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from eval.core.baselines import Baselines, ConstantAnswer
from eval.core.records import JsonObject, optional_field, require_field
from eval.core.sample import Prediction
from eval.metrics.estimate import Estimate
from internvl.data.natural_order import natural_key
from internvl.errors import DataError, EvalError

SCORES_NAME = "scores.json"
SETTINGS_NAME = "settings.json"
PREDICTIONS_NAME = "predictions.jsonl"
NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, NoneType)


@dataclass(frozen=True)
class Settings:
    """Everything that the answers of a task depend on."""

    values: JsonObject  # all settings as they are stored; two results are comparable where these agree
    task: str  # name of the task; empty where none was written down
    task_version: int | None  # version of the task; None where none was written down
    prompts: str  # whose prompts were used
    rope_pos_id_version: str  # how positions were made
    rope_pos_id_stride: float | None  # positions that one tile spans; None unless the stride is fixed
    rope_scaling: str | None  # scaling of rotary positions, such as `yarn:4`; None: the checkpoint's own
    logn_scaling: float | None  # training length of log-n scaling; None: the checkpoint's own


@dataclass(frozen=True)
class SavedSettings:
    """A settings.json."""

    fingerprint: str  # hash of the settings that every line of `parts/` carries
    settings: Settings  # what the predictions were made with
    info: Mapping[str, str]  # paths for readers, which an answer does not depend on


@dataclass(frozen=True)
class LengthBin:
    """The questions whose contexts are about the same length."""

    low: int | None  # shortest context in tokens; None: open
    high: int | None  # first length that is too long; None: open
    score: float
    stderr: float  # its standard error
    count: int
    chance: float | None  # score of guessing; None where it is not known


@dataclass(frozen=True)
class DepthGrid:
    """Scores by context length and by depth of the needle."""

    lengths: Sequence[str]  # labels of the length bins
    depths: Sequence[float]  # left edges of the depth cells, in shares of the context
    score_sums: Sequence[Sequence[float]]  # sum of scores by (length, depth)
    counts: Sequence[Sequence[int]]  # questions by (length, depth)


@dataclass(frozen=True)
class Scores:
    """Numbers of one task under one scoring rule."""

    score: float | None  # the task's number; None where no answer is public
    stderr: float | None  # its standard error; None likewise
    count: int
    num_failed: int  # questions without a response
    num_empty: int  # questions with an empty response
    chance: float | None  # score of guessing; None where it is not known
    by_length: tuple[LengthBin, ...]  # bins of context lengths, from short to long; empty where the task has none
    by_depth_and_length: DepthGrid | None  # of tasks about needles
    baselines: Baselines | None  # what answers get that do not look at the question; None without public answers
    numbers: JsonObject  # the stored object, for what only the task itself knows

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
    info: Mapping[str, str]  # paths for readers
    scores: Mapping[str, Scores]  # by scoring rule
    folder: Path  # where the file lies
    content: JsonObject  # the stored object, for the groups' own summaries

    @property
    def headline(self) -> Scores:
        """The numbers under the rule of the headline."""
        return self.scores[self.protocol]

    @property
    def run_folder(self) -> Path:
        """The result folder of the run: `RUN` of `RUN/GROUP/TASK`; the task's own folder where it was moved."""
        return find_run_folder(self.folder, self.task)


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
    with _explain(f"{path} is broken", f"make it again with python -m eval.score {path.parent}"):
        return parse_result(_load(path.read_bytes()), path.parent)


def parse_result(content: JsonObject, folder: Path) -> TaskResult:
    """The record of a scores.json in `folder`. Raises DataError if a field is missing or of a wrong type."""
    results, protocol = require_field(content, "results", dict), require_field(content, "protocol", str)
    if protocol not in results:
        raise DataError(f"results has the rules {sorted(results)}, expected the headline's {protocol!r} among them")
    with _inside("settings"):
        settings = parse_settings(require_field(content, "settings", dict))
    return TaskResult(
        task=require_field(content, "task", str),
        version=require_field(content, "version", int),
        source=require_field(content, "source", str),
        protocol=protocol,
        settings=settings,
        info=_parse_texts(content, "info"),
        scores={name: _parse_scores(results, name) for name in results},
        folder=folder,
        content=content,
    )


def read_settings(folder: Path) -> SavedSettings:
    """A task's settings.json. Raises EvalError if it is missing or not JSON, or a field is missing or wrong."""
    path = folder / SETTINGS_NAME
    problem = f"{path} says what the predictions beside it were made with, but cannot be read"
    with _explain(problem, "choose another --out, or pass --overwrite"):
        content = _load(path.read_bytes())
        settings = require_field(content, "settings", dict)
        with _inside("settings"):
            parsed = parse_settings(settings)
        return SavedSettings(require_field(content, "fingerprint", str), parsed, _parse_texts(content, "info"))


def parse_settings(values: JsonObject) -> Settings:
    """The record of stored settings. Raises DataError if a field is of a wrong type."""
    return Settings(
        values=values,
        task=optional_field(values, "task", str) or "",
        task_version=optional_field(values, "task_version", int),
        prompts=optional_field(values, "prompts", str) or "upstream",
        rope_pos_id_version=optional_field(values, "rope_pos_id_version", str) or "unknown positions",
        rope_pos_id_stride=optional_field(values, "rope_pos_id_stride", NUMBER),
        rope_scaling=optional_field(values, "rope_scaling", str),
        logn_scaling=optional_field(values, "logn_scaling", NUMBER),
    )


def read_predictions(folder: Path) -> list[Prediction]:
    """The finished predictions of a task's folder, every sample once.

    Raises EvalError if the file is missing, cut off or broken, or holds a sample twice.
    """
    path = folder / PREDICTIONS_NAME
    if not path.is_file():
        raise EvalError(f"{path} not found; the task is not finished: start the same eval.run command again")
    if not path.read_bytes().endswith(b"\n"):
        raise EvalError(f"{path} is empty or ends in the middle of a line; start the same eval.run command again")
    predictions: dict[str, Prediction] = {}
    for number, prediction, _ in read_prediction_lines(path):
        if prediction.id in predictions:
            raise EvalError(f"{path} line {number} holds sample {prediction.id!r} twice; delete one of the lines")
        predictions[prediction.id] = prediction
    return list(predictions.values())


def read_prediction_lines(path: Path) -> Iterator[tuple[int, Prediction, str | None]]:
    """(line number from 1, prediction, fingerprint if it has one) of every finished line.

    What follows the last line break is not read: another process may be in the middle of writing it.
    Raises EvalError if a line is not a JSON object, or a field is missing or of a wrong type.
    """
    for number, line in enumerate(_read_bytes(path).split(b"\n")[:-1], start=1):
        with _explain(f"{path} line {number} is broken", "delete the line and start again"):
            record = _load(line)
            yield number, parse_prediction(record), optional_field(record, "fingerprint", str)


def parse_prediction(record: JsonObject) -> Prediction:
    """The record of a predictions line; more keys are ignored. Raises DataError if a field is missing or wrong."""
    return Prediction(
        id=require_field(record, "id", str),
        response=require_field(record, "response", str),
        answer=require_field(record, "answer", object),
        metadata=require_field(record, "metadata", dict),
        num_prompt_tokens=require_field(record, "num_prompt_tokens", int),
        num_tiles=require_field(record, "num_tiles", int),
        last_position=require_field(record, "last_position", NUMBER),
        seconds=require_field(record, "seconds", NUMBER),
        failure=require_field(record, "failure", (str, NoneType)),
    )


def _parse_scores(results: JsonObject, protocol: str) -> Scores:
    with _inside(f"results.{protocol}"):
        numbers = require_field(results, protocol, dict)
        grid = optional_field(numbers, "by_depth_and_length", dict)
        floors = optional_field(numbers, "floors", dict)
        return Scores(
            score=require_field(numbers, "score", OPTIONAL_NUMBER),
            stderr=require_field(numbers, "stderr", OPTIONAL_NUMBER),
            count=require_field(numbers, "count", int),
            num_failed=require_field(numbers, "num_failed", int),
            num_empty=require_field(numbers, "num_empty", int),
            chance=require_field(numbers, "chance", OPTIONAL_NUMBER),
            by_length=_parse_lengths(optional_field(numbers, "by_length", list) or []),
            by_depth_and_length=None if grid is None else _parse_grid(grid),
            baselines=None if floors is None else _parse_baselines(floors),
            numbers=numbers,
        )


def _parse_lengths(rows: Sequence[JsonObject]) -> tuple[LengthBin, ...]:
    bins = []
    for place, row in enumerate(rows):
        with _inside(f"by_length.{place}"):
            low, high = (require_field(row, name, (int, NoneType)) for name in ("low", "high"))
            score, stderr = (require_field(row, name, NUMBER) for name in ("score", "stderr"))
            chance, count = require_field(row, "chance", OPTIONAL_NUMBER), require_field(row, "count", int)
            # Intervals are computed from these two, and have no meaning outside their ranges.
            if count < 1 or not 0 <= score <= 1:
                raise DataError(f"{count} questions with score {score}, expected some questions and a score in 0..1")
            bins.append(LengthBin(low, high, score, stderr, count, chance))
    return tuple(bins)


def _parse_grid(grid: JsonObject) -> DepthGrid:
    with _inside("by_depth_and_length"):
        lengths, depths, score_sums, counts = (
            require_field(grid, name, list) for name in ("lengths", "depths", "score_sums", "counts")
        )
        _check_all(lengths, str, "lengths")
        _check_all(depths, NUMBER, "depths")
        for name, table in (("score_sums", score_sums), ("counts", counts)):
            _check_all(table, list, name)
            if len(table) != len(lengths) or any(len(row) != len(depths) for row in table):
                raise DataError(f"{name} has another shape than {len(lengths)} lengths by {len(depths)} depths")
            for row in table:
                _check_all(row, NUMBER, name)
        if not any(map(any, counts)):
            raise DataError("counts has no questions")
        return DepthGrid(lengths, depths, score_sums, counts)


def _check_all(values: Sequence[object], kind: type | tuple[type, ...], name: str) -> None:
    wrong = [value for value in values if not isinstance(value, kind)]
    if wrong:
        expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{name} holds {wrong[0]!r}, expected {expected}")


def _parse_baselines(floors: JsonObject) -> Baselines:
    with _inside("floors"):
        letters = require_field(floors, "letters", dict)
        _check_all(list(letters.values()), NUMBER, "letters")
        majority = optional_field(floors, "majority", dict)
        return Baselines(
            count=require_field(floors, "count", int),
            empty=require_field(floors, "empty", NUMBER),
            letter=_parse_constant(require_field(floors, "letter", dict)),
            letters=letters,
            majority=None if majority is None else _parse_constant(majority),
        )


def _parse_constant(answer: JsonObject) -> ConstantAnswer:
    return ConstantAnswer(require_field(answer, "response", str), require_field(answer, "score", NUMBER))


def _parse_texts(content: JsonObject, name: str) -> Mapping[str, str]:
    """An object whose values are all texts; empty where it is missing."""
    texts = optional_field(content, name, dict) or {}
    _check_all(list(texts.values()), str, name)
    return texts


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvalError(f"{path} cannot be read ({error})") from error


def _load(content: bytes) -> JsonObject:
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
def _inside(place: str) -> Iterator[None]:
    """Errors about fields say in which object the field is."""
    try:
        yield
    except DataError as error:
        raise DataError(f"in {place}: {error.message}") from error


@contextmanager
def _explain(problem: str, remedy: str) -> Iterator[None]:
    """Whatever damage was found becomes one error: which file, what is wrong, what to do."""
    try:
        yield
    except (OSError, ValueError, DataError) as error:
        raise EvalError(f"{problem} ({error}); {remedy}") from error
