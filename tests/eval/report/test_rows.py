"""Scores as rows, in JSON and CSV."""

import csv
import io
import json
from pathlib import Path

import pytest

from eval.core.result import parse_result
from eval.report.rows import format_csv, label_length, tabulate
from tests.eval.report.results import make_content, make_result


def test_records_carry_everything_a_report_needs():
    rows = tabulate([make_result()], ["run"])
    assert [row.length for row in rows] == ["100-200", "200-400", "400+", "all"]
    row = rows[0]
    assert row.accuracy == 0.75
    assert row.count == 20
    assert row.chance == pytest.approx(0.1)
    assert row.stderr == pytest.approx((0.75 * 0.25 / 20) ** 0.5)
    assert row.to_json()["interval"] == (pytest.approx(0.531, abs=1e-3), pytest.approx(0.888, abs=1e-3))
    assert (row.rope_pos_id_version, row.rope_pos_id_stride) == ("v2pe_fix", 1)


def test_length_labels():
    assert [label_length(*pair) for pair in ((None, 1000), (1000, 1500), (64000, None))] == ["<1k", "1k-1500", "64k+"]


def test_every_protocol_is_a_line_of_the_csv_with_its_baselines():
    content = make_content()
    floors = {
        "count": 60,
        "empty": 0.0,
        "letters": {"A": 0.1},
        "letter": {"response": "A", "score": 0.1},
        "majority": None,
    }
    content["results"]["upstream"] = {**content["results"]["official"], "score": 0.5, "floors": floors}
    rows = tabulate([parse_result(json.loads(json.dumps(content)), Path("/runs/eval"))], ["run"], rules="all")
    lines = list(csv.DictReader(io.StringIO(format_csv(rows))))
    assert [(line["protocol"], line["length"]) for line in lines][3:5] == [("official", "all"), ("upstream", "100-200")]
    last = lines[-1]
    assert (last["accuracy"], last["floor_letter"], last["floor_letter_score"]) == ("0.5", "A", "0.1")
    assert last["floor_empty"] == "0.0"
    assert last["floor_majority"] == ""
    assert lines[3]["floor_empty"] == ""
