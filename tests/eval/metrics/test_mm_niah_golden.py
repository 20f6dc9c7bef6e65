"""MM-NIAH scoring against the published scripts' own outputs."""

import json
import os
from pathlib import Path

import pytest

from eval.metrics.mm_niah import build_grid, is_correct, summarise_grid

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[2] / "golden"))


def load_golden(name):
    return json.loads((GOLDEN_DIR / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("protocol", "field"), [("official", "expected"), ("upstream", "v2pe")])
def test_single_answers_score_as_the_published_scripts_do(protocol, field):
    cases = load_golden("mm_niah_is_correct")["cases"]
    got = {case["id"]: is_correct(case["answer"], case["response"], protocol=protocol) for case in cases}
    assert got == pytest.approx({case["id"]: case[field] for case in cases})


@pytest.mark.parametrize(("protocol", "field"), [("official", "mean_expected"), ("upstream", "mean_v2pe")])
def test_mean_over_all_answers_matches(protocol, field):
    golden = load_golden("mm_niah_is_correct")
    scores = [is_correct(case["answer"], case["response"], protocol=protocol) for case in golden["cases"]]
    assert sum(scores) / len(scores) == pytest.approx(golden["aggregate"][field])


def aggregate(cases, protocol):
    rows = [
        (c["context_length"], c["placed_depth"], is_correct(c["answer"], c["response"], protocol=protocol))
        for c in cases
    ]
    return summarise_grid(build_grid(rows))


def test_official_length_scores_match():
    golden = load_golden("mm_niah_aggregate")
    expected = dict(golden["aggregate"]["official_scores_json"])
    summary = aggregate(golden["cases"], "official")
    assert summary["context_ranges"] == expected.pop("context_ranges")
    for task, scores in expected.items():
        assert summary["scores"] == pytest.approx(scores, abs=1e-9), task


def test_upstream_weighted_numbers_match():
    golden = load_golden("mm_niah_aggregate")
    expected = dict(golden["aggregate"]["v2pe_scores_json"])
    summary = aggregate(golden["cases"], "upstream")
    for key in ("average", "weighted_acc", "sample_number_array", "weighted_avg_acc"):
        assert summary[key] == pytest.approx(expected[key]), key
