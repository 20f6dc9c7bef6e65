"""Own benchmarks: a YAML file becomes a task, without code.

    my.yaml  --read_benchmark-->  Benchmark  --make_task-->  Task, as that of any published benchmark
    annotation (jsonl, json, tsv, csv, parquet)  --a row, its columns-->  prompt, pictures, gold answer, groups

docs/your_benchmark.md explains every key. What a model is asked is part of a result's settings, so predictions of two
versions of a file never mix; scorer and groups may change, and saved predictions are scored again.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.core.data_root import Root
from eval.core.fields import parse_record
from eval.core.records import JsonObject
from eval.core.result import SETTINGS_NAME, explain_damage
from eval.core.sample import Gold, PackedImage, Sample, SampleImage
from eval.core.task import Scored, Task
from eval.metrics import choice
from eval.metrics.bins import format_number, label_value
from eval.metrics.estimate import estimate_groups
from eval.tasks.questions import (
    Results,
    estimate_cost,
    letter_options,
    order_label,
    put_images_first,
    upload_list,
    use_one_rule,
)
from eval.tasks.scorers import Scorer, check_keys, make_scorer
from eval.tasks.tables import read_rows
from eval.tasks.template import fill_template, list_fields
from internvl.config_file import RECIPES, read_config
from internvl.data.storage.media import resolve_image_path
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip
from internvl.errors import ConfigError, DataError, did_you_mean
from internvl.model.constants import IMAGE_PLACEHOLDER

GROUP = "own"
SUFFIXES = (".yaml", ".yml")
FILE, CONTENT = "benchmark", "benchmark_content"  # keys of a result's info
_MAX_KEPT = 200  # characters of a column that is kept for groups and judges

Row = Mapping[str, object]


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; one that is not named is the column of the same name, if there is one."""

    question: str | None = None  # what `{question}` stands for
    image: str | list[str] | None = None  # path, list of paths, or the picture itself; or several such columns
    image_base64: str | None = None  # a picture as base64 text
    video: str | None = None  # path of a file or of a folder of frames
    options: str | list[str] | None = None  # a list of texts; or a column per option
    answer: str | None = None  # the accepted answer, or a list of them
    id: str | None = None  # unique; without it rows are numbered


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file; the fields are its keys."""

    annotation: str  # file of questions, relative to the YAML file
    prompt: str | Mapping[str, str]  # template; or several by style, the first is the default
    scorer: str | Mapping[str, object]  # name; or an object with `name` and options
    name: str | None = None  # the task is `own/NAME`; None: the file's name
    columns: Columns = field(default_factory=Columns)
    pictures: str = "."  # folder of pictures and videos, relative to the YAML file
    groups: object = None  # columns that scores are reported by: a list, or an object with edges for columns of numbers
    max_new_tokens: int = 64  # length of an answer
    max_tiles: int = 12  # per picture, without the thumbnail
    frames: int = 16  # per video
    source: str | None = None  # where it comes from

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for name in ("max_new_tokens", "max_tiles", "frames"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.prompt == {}:
            raise DataError("prompt is empty, expected a template, or templates by the names of their styles")
        self.scoring  # noqa: B018  # raises for a wrong scorer
        self.edges  # noqa: B018

    @property
    def scoring(self) -> Scorer:
        """The scorer with its options."""
        return make_scorer(self.scorer)

    @property
    def edges(self) -> dict[str, list[float]]:
        """Columns that scores are reported by; rising borders for those that hold numbers, else none."""
        if isinstance(self.groups, list) and all(isinstance(name, str) for name in self.groups):
            return {name: [] for name in self.groups}
        groups = {} if self.groups is None else self.groups
        if not isinstance(groups, dict):
            raise DataError(f"groups is {groups!r}, expected a list of columns, or edges by column")
        for name, edges in groups.items():
            is_rising = isinstance(edges, list) and all(type(edge) in (int, float) for edge in edges)
            if edges is not None and not (is_rising and all(a < b for a, b in pairwise(edges))):
                raise DataError(f"groups: {name} is {edges!r}, expected rising numbers such as [10, 20], or nothing")
        return {name: edges or [] for name, edges in groups.items()}

    @property
    def asked(self) -> JsonObject:
        """What answers depend on. Limits of tokens, tiles and frames are among a task's settings anyway."""
        return {"prompt": self.prompt, "columns": asdict(self.columns), "pictures": self.pictures}

    def choose_template(self, style: str) -> tuple[str, str | None]:
        """(template, name of its style, None where there is only one). Raises ConfigError for an unknown style."""
        if isinstance(self.prompt, str):
            return self.prompt, None
        name = next(iter(self.prompt)) if style == "upstream" and style not in self.prompt else style
        if name not in self.prompt:
            guess, known = did_you_mean(name, self.prompt), ", ".join(self.prompt)
            raise ConfigError(f"own/{self.name}: no prompt style {name!r}{guess}; it has {known}")
        return self.prompt[name], name


def read_benchmark(path: Path) -> Benchmark:
    """The benchmark of a YAML file. Raises ConfigError that names the file and the key."""
    return _parse_benchmark(read_config(path), path)


def _parse_benchmark(content: Mapping[str, object], path: Path) -> Benchmark:
    try:
        check_keys(content, {entry.name: entry for entry in fields(Benchmark)}, where="benchmark")
        if isinstance(columns := content.get("columns"), dict):
            check_keys(columns, {entry.name: entry for entry in fields(Columns)}, where="columns")
        benchmark = parse_record(Benchmark, dict(content))
    except DataError as error:
        raise ConfigError(f"{path}: {error.message}") from error
    name = benchmark.name or path.stem
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigError(f"{path}: the name {name!r} becomes a folder: letters, digits, `-`, `_` and `.` only")
    return replace(benchmark, name=name)


def make_task(path: Path, prompts: str = "upstream") -> Task:
    """The task of a YAML file, or else of the shipped example of this name.

    Raises ConfigError that names the file and the key.
    """
    path = next((place for place in (path, RECIPES / path) if place.is_file()), path)
    return _build_task(read_benchmark(path), path.absolute(), prompts)


def find_saved_task(name: str, info: Mapping[str, str], asked: object, *, prompts: str) -> Task:
    """The task of this name whose results have this `info`: of the file, so that changed scorers and groups count.

    Where the file is gone, has another name by now, or asks something else, it is what the file said then. Raises
    EvalError if that is damaged.
    """
    path = Path(info[FILE])
    if path.is_file():
        benchmark = read_benchmark(path)
        if name == f"{GROUP}/{benchmark.name}" and asked in (None, benchmark.asked):
            return _build_task(benchmark, path, prompts)
    with explain_damage(f"{name}: the description of the benchmark in {SETTINGS_NAME} is damaged", f"restore {path}"):
        return _build_task(_parse_benchmark(json.loads(info[CONTENT]), path), path, prompts)


def _build_task(benchmark: Benchmark, path: Path, prompts: str) -> Task:
    template, style = benchmark.choose_template(prompts)
    fields_of_prompt = list_fields(template, where=f"{path}: prompt")
    if not fields_of_prompt:
        raise ConfigError(f"{path}: the prompt has no {{column}}, so every question would be the same")
    scorer = benchmark.scoring
    judge = None if scorer.judge is None else replace(scorer.judge, name=f"own-{benchmark.name}")
    annotation = path.parent / benchmark.annotation
    return Task(
        name=f"{GROUP}/{benchmark.name}",
        version=1,
        source=benchmark.source or f"the author of {path}",
        annotation=annotation,
        read_samples=partial(_read_samples, benchmark=benchmark, template=template, folder=path.parent),
        max_new_tokens=benchmark.max_new_tokens,
        max_num=benchmark.max_tiles,
        score_answer=use_one_rule(scorer.score),
        aggregate=partial(_aggregate, benchmark=benchmark),
        details={"benchmark": benchmark.asked, **({} if style is None else {"prompts": style})},
        uploads=(upload_list(id="id", response="response"),),
        num_frames=benchmark.frames,
        judge=judge,
        info={FILE: str(path), CONTENT: json.dumps({**vars(benchmark), "columns": asdict(benchmark.columns)})},
    )


def _read_samples(data_root: Root, *, benchmark: Benchmark, template: str, folder: Path) -> list[Sample]:
    path = folder / benchmark.annotation
    rows = read_rows(path)
    known = list(dict.fromkeys(column for row in rows for column in row))
    columns = _find_columns(benchmark, template, known, source=str(path))
    reader = _RowReader(benchmark, columns, template, folder)
    samples = []
    for number, row in enumerate(rows):
        try:
            samples.append(reader.read(number, row))
        except (DataError, ValueError) as error:
            raise DataError(str(error), source=str(path), row=number) from error
    return samples


def _find_columns(benchmark: Benchmark, template: str, known: Sequence[str], *, source: str) -> Columns:
    """The columns that the file has, by what they hold. Raises DataError for a name that it has not."""
    given = {name: value for name, value in vars(benchmark.columns).items() if value is not None}
    roles: dict[str, Any] = {entry.name: entry.name for entry in fields(Columns) if entry.name in known} | given
    named = [
        *((f"columns: {role}", name) for role, value in given.items() for name in _list_names(value)),
        *(("prompt", name) for name in list_fields(template, where="prompt") if name not in roles),
        *(("groups", name) for name in benchmark.edges),
    ]
    for key, name in named:
        if name not in known:
            guess = did_you_mean(name, known)
            raise DataError(f"{key}: there is no column {name!r}{guess}; columns: {', '.join(known)}", source=source)
    if benchmark.scoring.needs_options and "options" not in roles:
        raise DataError("columns: the scorer needs options, name their column or columns", source=source)
    return Columns(**roles)


def _list_names(columns: str | list[str] | None) -> list[str]:
    return [columns] if isinstance(columns, str) else columns or []


class _RowReader:
    """Makes the sample of a row. Its errors are DataErrors that name the column."""

    def __init__(self, benchmark: Benchmark, columns: Columns, template: str, folder: Path):
        self._benchmark, self._columns, self._template = benchmark, columns, template
        self._fields = list_fields(template, where="prompt")
        self._folder, self._pictures = folder, folder / benchmark.pictures
        self._scorer = benchmark.scoring

    def read(self, number: int, row: Row) -> Sample:
        """The sample of row `number`."""
        images, videos = tuple(self._list_images(number, row)), tuple(self._list_videos(row))
        options = self._list_options(row)
        text = self._write_prompt(row, options, num_images=len(images), num_videos=len(videos))
        num_tiles = len(images) * (self._benchmark.max_tiles + 1) + len(videos) * self._benchmark.frames
        edges = self._benchmark.edges
        for column in edges:
            name_group(row, column, edges[column])  # a row without a group shows now
        return Sample(
            id=str(number) if self._columns.id is None else _read_text(row, self._columns.id),
            prompt=_put_media_first(text, num_images=len(images), num_videos=len(videos)),
            images=images,
            answer=self._read_answer(row, options),
            metadata={
                "question": text,
                **({"chance": 1 / len(options)} if self._scorer.needs_options else {}),
                "row": {
                    **{name: value for name, value in row.items() if _is_short(value)},
                    **{name: _read_text(row, name) for name in edges},
                },
            },
            cost=estimate_cost(text, num_tiles),
            videos=videos,
        )

    def _list_images(self, number: int, row: Row) -> list[SampleImage]:
        found: list[SampleImage] = []
        columns = self._columns.image
        if isinstance(columns, list):  # questions may have fewer pictures than others
            columns = [name for name in columns if row.get(name) not in (None, "")]
        for column in _list_names(columns):
            place = f"{self._folder / self._benchmark.annotation}, row {number}, column {column!r}"
            for value in _list_values(row, column):
                if isinstance(value, Mapping):  # a parquet file of the hub: {"bytes": ..., "path": ...}
                    value = value.get("bytes") or value.get("path")
                if isinstance(value, bytes):
                    found.append(PackedImage(place, base64.b64encode(value).decode()))
                else:
                    found.append(self._find_media(value, column))
        if self._columns.image_base64 is not None:
            column = self._columns.image_base64
            found.append(PackedImage(f"row {number}, column {column!r}", _read_text(row, column)))
        return found

    def _list_videos(self, row: Row) -> list[VideoClip]:
        column = self._columns.video
        return (
            [] if column is None else [VideoClip(self._find_media(name, column)) for name in _list_values(row, column)]
        )

    def _find_media(self, name: object, column: str) -> Path:
        if not isinstance(name, str):
            raise DataError(f"column {column!r} holds a {type(name).__name__}, expected the path of a picture or video")
        try:
            return Path(resolve_image_path(name, root=self._pictures))
        except DataError as error:
            raise DataError(f"column {column!r}: {error.message}") from error

    def _list_options(self, row: Row) -> list[str]:
        columns = self._columns.options
        if columns is None:
            return []
        if isinstance(columns, str):
            options = _list_values(row, columns)
        else:  # a column each; questions may have fewer options than others
            options = [row[name] for name in columns if row.get(name) not in (None, "")]
        if len(options) < 2:
            raise DataError(f"column {columns!r} holds {len(options)} options, expected a list of 2 or more")
        return [_write(option) for option in options]

    def _read_answer(self, row: Row, options: Sequence[str]) -> Gold:
        column = self._columns.answer
        if column is None or row.get(column) in (None, "", []):
            return None
        answers = [_write(answer) for answer in _list_values(row, column)]
        gold = {"answer": answers, "options": choice.label_options(options)}
        try:
            self._scorer.score(gold, "")  # what the rule cannot take shows here, before a model is asked
        except (DataError, ValueError) as error:
            raise DataError(f"column {column!r}: {error}") from error
        return gold

    def _write_prompt(self, row: Row, options: Sequence[str], *, num_images: int, num_videos: int) -> str:
        lines = {
            "options": letter_options(options),
            "image": "\n".join([IMAGE_PLACEHOLDER] * num_images),
            "video": "\n".join([VIDEO_PLACEHOLDER] * num_videos),
        }
        own = {name: text for name, text in lines.items() if getattr(self._columns, name) is not None}
        names = {"question": self._columns.question or "question"}
        values = {name: own[name] if name in own else _read_text(row, names.get(name, name)) for name in self._fields}
        return fill_template(self._template, values, where="prompt").strip()


def _put_media_first(text: str, *, num_images: int, num_videos: int) -> str:
    """The text after its videos and pictures, unless it says itself where they stand."""
    num_placed = text.count(VIDEO_PLACEHOLDER)
    if num_placed not in (0, num_videos):
        raise DataError(f"the prompt holds {num_placed} {VIDEO_PLACEHOLDER} for {num_videos} videos")
    videos = "" if num_placed else f"{VIDEO_PLACEHOLDER}\n" * num_videos
    return videos + put_images_first(text, num_images)


def name_group(row: Row, column: str, edges: Sequence[float]) -> str:
    """The group of a row: its text, or with edges the bin's label. Raises DataError that names the column."""
    text = _read_text(row, column)
    return label_value(_read_number(text, column), edges) if edges else text


def _read_number(text: str, column: str) -> float:
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise DataError(f"column {column!r} is {text!r}, expected a number (groups)")


def _list_values(row: Row, column: str) -> list[object]:
    """The values of a list; of one value, that one. A text table writes lists as JSON."""
    value = row.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):  # a text that begins with a bracket
            value = json.loads(value)
    if value in (None, "", []):
        raise DataError(f"column {column!r} is missing or empty")
    return value if isinstance(value, list) else [value]


def _read_text(row: Row, column: str) -> str:
    if row.get(column) is None:
        raise DataError(f"column {column!r} is missing or empty")
    value = row[column]
    if isinstance(value, (Mapping, bytes)):
        raise DataError(f"column {column!r} holds a {type(value).__name__}, expected a text, a number or a list")
    return ", ".join(map(_write, value)) if isinstance(value, list) else _write(value)


def _write(value: object) -> str:
    """A value as a model reads it: `3.0` is `3`, since tables do not always tell whole numbers from others."""
    return format_number(value) if isinstance(value, float) else str(value)


def _is_short(value: object) -> bool:
    return isinstance(value, (str, int, float)) and len(str(value)) <= _MAX_KEPT


def _aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None, *, benchmark: Benchmark) -> JsonObject:
    """`groups`: mean by column and group, in the order of names, and of numbers."""
    groups = {column: _average_by(scored, column, edges) for column, edges in benchmark.edges.items()}
    return {"groups": groups} if groups else {}


def _average_by(scored: Sequence[Scored], column: str, edges: Sequence[float]) -> dict[str, dict[str, float]]:
    def order(item: Scored) -> Any:
        text = item.metadata["row"][column]
        return float(text) if edges else order_label(text)

    rows = ((name_group(item.metadata["row"], column, edges), item.score) for item in sorted(scored, key=order))
    return estimate_groups(rows)


def summarise(results: Results) -> dict[str, object]:
    """The groups of every own benchmark, by rule."""
    return {
        name: {protocol: numbers.get("groups", {}) for protocol, numbers in result["results"].items()}
        for name, result in results.items()
    }
