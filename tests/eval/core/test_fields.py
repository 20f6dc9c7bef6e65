"""Records as dataclasses: what is accepted, and how a wrong field is named."""

import json
from dataclasses import dataclass, field

import pytest

from eval.core.fields import parse_record, parse_rows, read_object
from internvl.errors import DataError


@dataclass(frozen=True)
class Part:
    name: str


@dataclass(frozen=True)
class Record:
    id: str | int
    share: float
    parts: list[Part]
    anything: object = None
    names: list[object] = field(default_factory=list)


GOOD = {"id": 3, "share": 1, "parts": [{"name": "a"}]}


def test_fields_keep_their_values_and_other_keys_are_ignored():
    assert parse_record(Record, {**GOOD, "more": 1}) == Record(3, 1, [Part("a")])


def test_optional_fields_may_be_missing_or_null():
    assert parse_record(Record, {**GOOD, "names": None, "anything": [1]}) == Record(3, 1, [Part("a")], [1], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "the field 'id' is a NoneType, expected str or int"),
        ({"share": "1"}, "the field 'share' is a str, expected int or float"),
        ({"parts": {}}, "the field 'parts' is a dict, expected list"),
        ({"parts": [{"name": "a"}, {"name": 1}]}, r"the field 'parts\[1\]\.name' is a int, expected str"),
        ({"parts": [{}]}, r"the field 'parts\[0\]\.name' is missing; fields: "),
        ({"parts": [1]}, r"the field 'parts\[0\]' is a JSON int, expected an object"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(change, message):
    with pytest.raises(DataError, match=message):
        parse_record(Record, {**GOOD, **change})


def test_rows_and_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"file\.jsonl, row 1.*the record is a JSON str, expected an object"):
        parse_rows(tmp_path / "file.jsonl", [GOOD, "text"], Record, lambda row, record: row)
    (tmp_path / "file.json").write_text('{"name": 1}')
    with pytest.raises(DataError, match=r"file\.json.*'name' is a int"):
        read_object(tmp_path / "file.json", Part)


def test_numbers_are_finite():
    @dataclass(frozen=True)
    class Place:
        depth: float

    with pytest.raises(DataError, match="the field 'depth' is inf, expected a finite number"):
        parse_record(Place, json.loads('{"depth": 1e999}'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": True}, "the field 'id' is a bool, expected str or int"),
        ({"share": False}, "the field 'share' is a bool, expected int or float"),
        ({"id": 10**400}, "the field 'id' is a number of 1329 bits, expected 64"),
        ({"shares": [0.5, json.loads("1e999")]}, r"the field 'shares\[1\]' is inf, expected a finite number"),
        ({"shares": [True]}, r"the field 'shares\[0\]' is a bool, expected int or float"),
    ],
)
def test_numbers_that_are_none_are_refused(change, message):
    @dataclass(frozen=True)
    class Numbers:
        id: str | int
        share: float = 0.0
        shares: tuple[float, ...] = ()

    with pytest.raises(DataError, match=message):
        parse_record(Numbers, {"id": 1, **change})


def test_truth_values_are_taken_where_they_are_expected():
    @dataclass(frozen=True)
    class Answer:
        right: bool
        other: bool | int = 3
        any: object = None

    assert parse_record(Answer, {"right": True, "other": False, "any": True}) == Answer(True, False, True)
