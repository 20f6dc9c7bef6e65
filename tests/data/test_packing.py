import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.data.packing import FillReport, FixedCountRows, Packer, PackingLimits
from internvl.errors import ConfigError, DataError


def pack(builder, documents):
    rows = [
        row
        for ref, (tokens, tiles) in enumerate(documents)
        for row in builder.add(ref, num_tokens=tokens, num_tiles=tiles)
    ]
    return rows + builder.flush()


DOCUMENTS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 10)), max_size=80)


@given(DOCUMENTS, st.integers(1, 6))
def test_no_document_is_lost_repeated_or_over_the_limits(documents, max_open_rows):
    rows = pack(Packer(PackingLimits(max_tokens=100, max_tiles=10, max_open_rows=max_open_rows)), documents)
    assert sorted(ref for row in rows for ref in row.refs) == list(range(len(documents)))
    for row in rows:
        assert row.num_tokens == sum(documents[ref][0] for ref in row.refs) <= 100
        assert row.num_tiles == sum(documents[ref][1] for ref in row.refs) <= 10


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


@pytest.mark.parametrize("size", [(11, 0), (1, 6)])
def test_a_document_larger_than_a_row_is_refused_and_the_packer_goes_on(size):
    packer = Packer(PackingLimits(max_tokens=10, max_tiles=5))
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
