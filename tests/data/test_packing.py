import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.data.packing import (
    POLICIES,
    FillReport,
    FixedCountRows,
    PackedRow,
    Packer,
    PackingLimits,
    RowCost,
    WindowPacker,
    check_policy,
)
from internvl.errors import ConfigError, DataError


def pack(builder, documents):
    rows = [
        row
        for ref, (tokens, tiles) in enumerate(documents)
        for row in builder.add(ref, num_tokens=tokens, num_tiles=tiles)
    ]
    return rows + builder.flush()


DOCUMENTS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 10)), max_size=80)


@pytest.mark.parametrize("policy", POLICIES)
@given(documents=DOCUMENTS, max_open_rows=st.integers(1, 6))
def test_no_document_is_lost_repeated_or_over_the_limits(policy, documents, max_open_rows):
    rows = pack(POLICIES[policy](PackingLimits(max_tokens=100, max_tiles=10, max_open_rows=max_open_rows)), documents)
    assert sorted(ref for row in rows for ref in row.refs) == list(range(len(documents)))
    for row in rows:
        assert row.num_tokens == sum(documents[ref][0] for ref in row.refs) <= 100
        assert row.num_tiles == sum(documents[ref][1] for ref in row.refs) <= 10


@pytest.mark.parametrize("policy", POLICIES)
@given(documents=DOCUMENTS, stop=st.integers(0, 80), max_open_rows=st.integers(1, 4))
def test_a_packer_goes_on_from_its_open_rows(policy, documents, stop, max_open_rows):
    limits = PackingLimits(max_tokens=100, max_tiles=10, max_open_rows=max_open_rows)
    whole = [row.refs for row in pack(POLICIES[policy](limits), documents)]
    first, second = POLICIES[policy](limits), POLICIES[policy](limits)
    rows = []
    for ref, (tokens, tiles) in enumerate(documents):
        if ref == stop:
            second.open_rows = [PackedRow([*row.refs], row.num_tokens, row.num_tiles) for row in first.open_rows]
        rows += (first if ref < stop else second).add(ref, num_tokens=tokens, num_tiles=tiles)
    rows += (first if stop >= len(documents) else second).flush()
    assert [row.refs for row in rows] == whole


@given(documents=DOCUMENTS, max_open_rows=st.integers(1, 4))
def test_documents_wait_for_a_limited_number_of_rows(documents, max_open_rows):
    packer = WindowPacker(PackingLimits(max_tokens=100, max_tiles=10, max_open_rows=max_open_rows))
    for ref, (tokens, tiles) in enumerate(documents):
        packer.add(ref, num_tokens=tokens, num_tiles=tiles)
        assert sum(row.num_tokens for row in packer.open_rows) <= 100 * max_open_rows
        assert sum(row.num_tiles for row in packer.open_rows) <= 10 * max_open_rows


@pytest.mark.parametrize("policy", ["best_fit", "balanced"])
def test_the_oldest_document_leaves_with_the_next_row(policy):
    packer = POLICIES[policy](PackingLimits(max_tokens=100, max_tiles=10, max_open_rows=2))
    packer.add("odd", num_tokens=51, num_tiles=0)
    rows = [row for ref in range(6) for row in packer.add(ref, num_tokens=50, num_tiles=0)]
    assert rows[0].refs[0] == "odd"


def test_best_fit_finds_the_exact_complement():
    packer = WindowPacker(PackingLimits(max_tokens=100, max_tiles=10, max_open_rows=3))
    sizes = [47, 60, 59, 53, 40, 41, 45]
    (row, *_) = [row for ref, size in enumerate(sizes) for row in packer.add(ref, num_tokens=size, num_tiles=1)]
    assert row.refs == [0, 3]


def draw_lengths(number):
    """Documents of the mixture that benchmarks/packing.py measures."""
    mix = json.loads((Path(__file__).parents[2] / "benchmarks" / "long_vqa_lengths.json").read_text())
    rng = np.random.default_rng(0)
    documents = []
    for which in rng.choice(len(mix["sources"]), size=number, p=[source["share"] for source in mix["sources"]]):
        source = mix["sources"][which]
        tokens = int(np.exp(rng.uniform(*np.log(source["tokens"]))))
        documents.append((tokens, int(tokens * source["visual"] / mix["tokens_per_tile"])))
    return documents


def test_balanced_rows_are_full_and_of_equal_work_where_greedy_ones_are_not():
    limits = PackingLimits(max_tokens=131_072, max_tiles=512)
    documents = draw_lengths(2400)
    work = RowCost().measure(*np.array(documents).T)
    fills, imbalances = {}, {}
    for policy in ("greedy", "balanced"):
        streams = []
        for stream in range(4):
            packer = POLICIES[policy](limits)
            numbers = range(stream, len(documents), 4)
            packed = [packer.add(n, num_tokens=documents[n][0], num_tiles=documents[n][1]) for n in numbers]
            streams.append([row for rows in packed for row in rows])
        fills[policy] = np.mean([row.num_tokens / limits.max_tokens for rows in streams for row in rows])
        steps = np.array([[work[row.refs].sum() for row in step] for step in zip(*streams, strict=False)])
        imbalances[policy] = (steps.max(axis=1) / steps.mean(axis=1) - 1).mean()
    assert fills["balanced"] > 0.98
    assert imbalances["balanced"] < 0.025 < 0.03 < imbalances["greedy"]


def test_unknown_policies_are_refused():
    with pytest.raises(ConfigError, match="packing_policy is 'worst_fit', expected one of greedy, best_fit, balanced"):
        check_policy("worst_fit")


@given(DOCUMENTS, st.integers(1, 6))
def test_few_rows_are_open_at_any_time(documents, max_open_rows):
    packer = Packer(PackingLimits(max_tokens=100, max_tiles=10, max_open_rows=max_open_rows))
    for ref, (tokens, tiles) in enumerate(documents):
        packer.add(ref, num_tokens=tokens, num_tiles=tiles)
    assert len(packer.flush()) <= max_open_rows


def test_documents_join_the_fullest_row_that_has_room():
    documents = [(20_000, 60), (15_000, 50), (13_900, 40), (18_000, 10)]
    rows = pack(Packer(PackingLimits(max_tokens=34_000, max_tiles=135)), documents)
    assert [row.refs for row in rows] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("documents", [[(6, 0), (4, 0), (1, 0)], [(1, 3), (1, 2), (1, 1)]], ids=["tokens", "tiles"])
def test_a_full_row_leaves_at_once(documents):
    packer = Packer(PackingLimits(max_tokens=10, max_tiles=5))
    emitted = [len(packer.add(i, num_tokens=tokens, num_tiles=tiles)) for i, (tokens, tiles) in enumerate(documents)]
    assert emitted == [0, 1, 0]


def test_the_fullest_row_leaves_when_too_many_are_open():
    packer = Packer(PackingLimits(max_tokens=10, max_tiles=10, max_open_rows=2))
    assert packer.add("a", num_tokens=6, num_tiles=0) == []
    assert packer.add("b", num_tokens=7, num_tiles=0) == []
    (row,) = packer.add("c", num_tokens=5, num_tiles=9)  # 9 of 10 tiles is fuller than 7 of 10 tokens
    assert row.refs == ["c"]
    assert [row.refs for row in packer.flush()] == [["a"], ["b"]]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(11, 0), (1, 6)])
def test_a_document_larger_than_a_row_is_refused_and_the_packer_goes_on(policy, size):
    packer = POLICIES[policy](PackingLimits(max_tokens=10, max_tiles=5))
    packer.add("small", num_tokens=3, num_tiles=1)
    with pytest.raises(DataError, match=f"has {size[0]} tokens and {size[1]} tiles, expected at most 10 tokens and 5"):
        packer.add("large", num_tokens=size[0], num_tiles=size[1])
    assert [row.refs for row in packer.flush()] == [["small"]]


@pytest.mark.parametrize("name", ["max_tokens", "max_tiles", "max_open_rows"])
def test_limits_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        PackingLimits(**({"max_tokens": 1, "max_tiles": 1, "max_open_rows": 1} | {name: 0}))


def test_without_packing_rows_have_a_fixed_number_of_documents():
    documents = [(5, 1)] * 5
    assert [row.refs for row in pack(FixedCountRows(2), documents)] == [[0, 1], [2, 3], [4]]
    assert [row.refs for row in pack(FixedCountRows(), documents[:2])] == [[0], [1]]


def test_fill_report_gives_shares_of_the_limits():
    limits = PackingLimits(max_tokens=10, max_tiles=5)
    report = FillReport()
    for row in pack(Packer(limits), [(6, 1), (3, 1), (9, 3)]):
        report.note(row)
    assert (report.num_rows, report.num_documents, report.num_tokens, report.num_tiles) == (2, 3, 18, 5)
    assert "90.0% of the allowed tokens and 50.0% of the allowed tiles" in report.describe(limits)
    assert "%" not in report.describe(None)
