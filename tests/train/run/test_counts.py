import pytest
import torch

from internvl.train.run.counts import Counts, RowStatistics

SOURCES = ("a", "b", "c")


def make_batch(lengths, refs, *, num_targets, num_tiles):
    """A row; the last `num_targets[i]` tokens of document i are targets."""
    labels = []
    for length, number in zip(lengths, num_targets, strict=True):
        labels += [-100] * (length - number) + [5] * number
    return {
        "input_ids": torch.ones(1, sum(lengths), dtype=torch.int64),
        "labels": torch.tensor([labels]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "pixel_values": torch.zeros(num_tiles, 3, 4, 4),
        "document_refs": torch.tensor(refs),
    }


FIRST = make_batch([4, 3], [[2, 10], [0, 11]], num_targets=[2, 1], num_tiles=3)
SECOND = make_batch([5], [[2, 12]], num_targets=[4], num_tiles=0)


def read(statistics):
    return Counts(SOURCES, statistics.take())


def test_counts_by_hand():
    statistics = RowStatistics(3)
    for batch in (FIRST, SECOND):
        statistics.note(batch)
    statistics.end_step(is_taken=True)
    counts = read(statistics)
    assert {name: counts[name] for name in ("rows", "samples", "tokens", "targets", "tiles")} == {
        "rows": 2,
        "samples": 3,
        "tokens": 12,
        "targets": 7,
        "tiles": 3,
    }
    assert counts["pairs"] == (1 + 2 + 3 + 4) + (1 + 2 + 3) + (1 + 2 + 3 + 4 + 5)
    assert dict(counts.by_source()) == {
        "a": {"samples": 1, "tokens": 3, "targets": 1, "weight": 0, "loss": 0},
        "c": {"samples": 2, "tokens": 9, "targets": 6, "weight": 0, "loss": 0},
    }


def test_taking_starts_anew():
    statistics = RowStatistics(3)
    statistics.note(FIRST)
    statistics.end_step(is_taken=True)
    assert read(statistics)["rows"] == 1
    assert not read(statistics).vector.any()


def test_a_step_that_is_left_out_counts_nothing():
    statistics = RowStatistics(3)
    statistics.note(FIRST)
    statistics.note_losses(torch.tensor([2, 0]), torch.tensor([2.0, 1.0]), torch.tensor([float("nan"), 1.0]))
    statistics.end_step(is_taken=False)
    statistics.note(SECOND)
    statistics.note_losses(torch.tensor([2]), torch.tensor([4.0]), torch.tensor([10.0]))
    statistics.end_step(is_taken=True)
    counts = read(statistics)
    assert (counts["rows"], counts["tiles"]) == (1, 0)
    assert dict(counts.by_source()) == {"c": {"samples": 1, "tokens": 5, "targets": 4, "weight": 4, "loss": 10}}


def test_a_step_in_progress_is_not_taken():
    statistics = RowStatistics(3)
    statistics.note(FIRST)
    assert not read(statistics).vector.any()
    statistics.end_step(is_taken=True)
    assert read(statistics)["rows"] == 1


def test_ranks_that_share_a_row_count_it_once_and_all_tiles():
    ranks = [RowStatistics(3), RowStatistics(3)]
    for rank, (statistics, num_tiles) in enumerate(zip(ranks, (2, 1), strict=True)):
        own = {**FIRST, "pixel_values": torch.zeros(num_tiles, 3, 4, 4)}
        statistics.note(own, counts_row=rank == 0)
        statistics.end_step(is_taken=True)
    alone = RowStatistics(3)
    alone.note(FIRST)
    alone.end_step(is_taken=True)
    assert torch.equal(sum(statistics.take() for statistics in ranks), alone.take())


def test_losses_add_up_over_micro_batches():
    statistics = RowStatistics(3)
    for _ in range(2):
        statistics.note(FIRST)
        statistics.note_losses(torch.tensor([2, 2]), torch.tensor([2.0, 1.0]), torch.tensor([3.0, 0.5]))
    statistics.end_step(is_taken=True)
    assert dict(read(statistics).by_source())["c"]["weight"] == 6
    assert not read(statistics).vector.any()


def test_counts_survive_json_and_other_data_sets():
    statistics = RowStatistics(3)
    statistics.note(FIRST)
    statistics.note_losses(torch.tensor([2, 0]), torch.tensor([2.0, 1.0]), torch.tensor([3.0, 0.5]))
    statistics.end_step(is_taken=True)
    counts = read(statistics)
    assert torch.equal(Counts.from_json(counts.to_json(), SOURCES).vector, counts.vector)
    moved = Counts.from_json(counts.to_json(), ("c", "new"))
    assert dict(moved.by_source()) == {"c": dict(counts.by_source())["c"]}
    assert moved["tokens"] == 7


def test_large_counts_are_exact():
    statistics = RowStatistics(1)
    length = 1_000_000
    batch = make_batch([length], [[0, 0]], num_targets=[1], num_tiles=0)
    for _ in range(3):
        statistics.note(batch)
    statistics.end_step(is_taken=True)
    assert Counts(("a",), statistics.take())["pairs"] == 3 * length * (length + 1) // 2


@pytest.mark.parametrize("name", ["rows", "pairs"])
def test_nothing_counted_is_zero(name):
    assert Counts.zeros(SOURCES)[name] == 0
