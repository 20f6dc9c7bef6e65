"""Records of annotation files as dataclasses: every field is checked against its annotation when a record is read.

    {"question": "How many?", "answer": 3}  --parse_record(Chart)-->  Chart(question="How many?", answer=3)

Code after that point sees typed fields instead of JSON. Annotations may be plain types, unions of them, lists and
objects of one kind of value (`list[...]`, `tuple[..., ...]`, `Mapping[str, ...]`), the texts of a `Literal`, and other
dataclasses; `object` takes anything, and `float` whole numbers too. A dataclass checks what types cannot say in
`__post_init__`, by a DataError.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from eval.core.records import read_json
from internvl.errors import DataError, did_you_mean

R = TypeVar("R")
T = TypeVar("T")
Place = tuple[str | int, ...]

KEY = "key"  # metadata of a field whose name in JSON is another one ...
WHOLE = ""  # ... or which holds the whole JSON object
_MAX_BITS = 64  # of a whole number
_JSON_KINDS: dict[object, type] = {Mapping: dict, Sequence: list, tuple: list, Any: object, Literal: str}


class _Field(NamedTuple):
    name: str
    key: str  # its name in JSON
    annotation: object
    plain: tuple[type, ...]  # types that need no further check
    has_default: bool


def parse_record(kind: type[R], value: object, *, place: Place = (), given: Mapping[str, object] | None = None) -> R:
    """A JSON object as a dataclass. Keys without a field are ignored; a field with a default may be missing or null.

    `given` are values of fields that are not read from JSON. Raises DataError if a field is missing or of another type;
    its name follows `place`, the names that lead to it.
    """
    if not isinstance(value, dict):
        where = f"the field {_join(place)!r}" if place else "the record"
        raise DataError(f"{where} is a JSON {type(value).__name__}, expected an object")
    values = dict(given or {})
    for field in _list_fields(kind):  # type: ignore[arg-type]  # classes are hashable
        content = value.get(field.key)
        if field.name in values:
            continue
        if field.key == WHOLE:
            values[field.name] = value
        elif type(content) in field.plain:  # unlike isinstance this takes no bool for an int
            _check_size(content, (*place, field.key))
            values[field.name] = content
        elif content is not None or not field.has_default:
            if field.key not in value:
                fields_there = ", ".join(sorted(value))
                raise DataError(f"the field {_join((*place, field.key))!r} is missing; fields: {fields_there}")
            values[field.name] = _parse(field.annotation, content, (*place, field.key))
    try:
        return cast(Callable[..., R], kind)(**values)
    except DataError as error:
        raise DataError(f"in {_join(place)!r}: {error.message}" if place else error.message) from error


def parse_rows(
    path: Path,
    records: Iterable[object],
    kind: type[R],
    build: Callable[[int, R], T],
    *,
    rows: Collection[int] | None = None,
) -> list[T]:
    """`build(row, record)` for every record of a file, or for those of `rows`.

    Raises DataError that names the file and the row.
    """
    built = []
    for row, record in enumerate(records):
        if rows is not None and row not in rows:
            continue
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
    kinds, part = _read_annotation(annotation)
    is_bool_for_number = isinstance(value, bool) and not {bool, object} & {*kinds}
    if (is_bool_for_number or not isinstance(value, kinds)) and not is_dataclass(annotation):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"the field {_join(place)!r} is a {type(value).__name__}, expected {expected}")
    if is_dataclass(part) and (value is not None or is_dataclass(annotation)):
        return parse_record(cast(type, part), value, place=place)
    if get_origin(part) is Literal and isinstance(value, str) and value not in get_args(part):
        guess, known = did_you_mean(value, get_args(part)), ", ".join(get_args(part))
        raise DataError(f"the field {_join(place)!r} is {value!r}{guess}, expected one of {known}")
    entry = get_args(part)[-1 if get_origin(part) in (Mapping, dict) else 0] if get_args(part) else Any
    if annotation not in (Any, object):
        _check_size(value, place)
    if entry in (Any, object):
        return value
    if isinstance(value, dict):
        return {key: _parse(entry, item, (*place, key)) for key, item in value.items()}
    if isinstance(value, list):
        items = [_parse(entry, item, (*place, index)) for index, item in enumerate(value)]
        return tuple(items) if get_origin(part) is tuple else items
    return value


def _check_size(value: object, place: Place) -> None:
    """Refuse numbers that JSON can hold and arithmetic cannot."""
    if isinstance(value, float) and not math.isfinite(value):  # JSON's 1e999
        raise DataError(f"the field {_join(place)!r} is {value}, expected a finite number")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise DataError(f"the field {_join(place)!r} is a number of {value.bit_length()} bits, expected {_MAX_BITS}")


def _join(place: Place) -> str:
    """`("a", 1, "b")` -> `a[1].b`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


# Answer files hold millions of records of few kinds, so annotations are read once and plain types have a short way.
@cache
def _list_fields(kind: type) -> list[_Field]:
    hints = get_type_hints(kind)
    return [
        _Field(
            entry.name,
            entry.metadata.get(KEY, entry.name),
            hints[entry.name],
            _list_plain(hints[entry.name]),
            not (entry.default is MISSING and entry.default_factory is MISSING),
        )
        for entry in fields(cast(Any, kind))
    ]


def _list_plain(annotation: object) -> tuple[type, ...]:
    kinds, part = _read_annotation(annotation)
    # An absent key reads as None, which `object` must not accept.
    return () if part is not None or object in kinds else tuple(kind for kind in kinds if kind is not type(None))


@cache
def _read_annotation(annotation: object) -> tuple[tuple[type, ...], object]:
    """What `isinstance` takes for an annotation, and the part of it (if any) whose contents are to be checked too."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    inner = next((part for part in parts if is_dataclass(part) or get_args(part)), None)
    kinds = tuple(dict if is_dataclass(part) else _find_kind(get_origin(part) or part) for part in parts)
    return ((int, *kinds) if float in kinds and int not in kinds else kinds), inner


def _find_kind(part: object) -> type:
    return _JSON_KINDS.get(part, cast(type, part))
