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
