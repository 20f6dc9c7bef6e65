"""Records of annotation files as dataclasses: every field is checked against its annotation when a record is read.

    {"question": "How many?", "answer": 3}  --parse_record(Chart)-->  Chart(question="How many?", answer=3)

Code after that point sees typed fields instead of JSON. Annotations may be plain types, unions of them, `list[...]` and
other dataclasses; `object` takes anything, and `float` whole numbers too.
"""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from eval.core.records import read_json
from internvl.errors import DataError

R = TypeVar("R")
T = TypeVar("T")
Place = tuple[str | int, ...]


def parse_record(kind: type[R], value: object, *, place: Place = ()) -> R:
    """A JSON object as a dataclass. Keys without a field are ignored; a field with a default may be missing or null.

    Raises DataError if a field is missing or of another type; its name follows `place`, the names that lead to it.
    """
    if not isinstance(value, dict):
        where = f"the field {_join(place)!r}" if place else "the record"
        raise DataError(f"{where} is a JSON {type(value).__name__}, expected an object")
    values = {}
    for name, annotation, plain, is_optional in _list_fields(kind):  # type: ignore[arg-type]  # classes are hashable
        content = value.get(name)
        if isinstance(content, plain):
            values[name] = content
        elif content is not None or not is_optional:
            if name not in value:
                fields_there = ", ".join(sorted(value))
                raise DataError(f"the field {_join((*place, name))!r} is missing; fields: {fields_there}")
            values[name] = _parse(annotation, content, (*place, name))
    return cast(Callable[..., R], kind)(**values)


def parse_rows(path: Path, records: Iterable[object], kind: type[R], build: Callable[[int, R], T]) -> list[T]:
    """`build(row, record)` for every record of a file. Raises DataError that names the file and the row."""
    built = []
    for row, record in enumerate(records):
        try:
            built.append(build(row, parse_record(kind, record)))
        except (DataError, ValueError) as error:
            raise DataError(str(error), source=str(path), row=row) from error
    return built


def read_object(path: Path, kind: type[R]) -> R:
    """A JSON file that holds one object. Raises DataError that names the file."""
    content = read_json(path, dict)
    try:
        return parse_record(kind, content)
    except DataError as error:
        raise DataError(str(error), source=str(path)) from error


def _parse(annotation: object, value: object, place: Place) -> object:
    if is_dataclass(annotation):
        return parse_record(cast(type, annotation), value, place=place)
    kinds, entry = _read_annotation(annotation)
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"the field {_join(place)!r} is a {type(value).__name__}, expected {expected}")
    if entry is object or not isinstance(value, list):
        return value
    return [_parse(entry, item, (*place, index)) for index, item in enumerate(value)]


def _join(place: Place) -> str:
    """`("a", 1, "b")` -> `a[1].b`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


# Answer files hold millions of records of few kinds, so annotations are read once and plain types have a short way.
@cache
def _list_fields(kind: type) -> list[tuple[str, object, tuple[type, ...], bool]]:
    """(name, annotation, types that need no further check, has a default) of every field."""
    hints = get_type_hints(kind)
    return [
        (
            entry.name,
            hints[entry.name],
            _list_plain(hints[entry.name]),
            not (entry.default is MISSING and entry.default_factory is MISSING),
        )
        for entry in fields(cast(Any, kind))
    ]


def _list_plain(annotation: object) -> tuple[type, ...]:
    kinds, entry = _read_annotation(annotation)
    # An absent key reads as None, which `object` must not accept.
    return kinds if entry is object and object not in kinds and not is_dataclass(annotation) else ()


@cache
def _read_annotation(annotation: object) -> tuple[tuple[type, ...], object]:
    """What `isinstance` takes for an annotation, and the annotation of the entries where it is a list."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kinds = tuple(get_origin(part) or part for part in parts)
    entry = get_args(annotation)[0] if get_origin(annotation) is list else object
    return ((int, *kinds) if float in kinds and int not in kinds else kinds), entry
