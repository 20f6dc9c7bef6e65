from eval.metrics.bins import find_bin, format_tokens, label_bin, label_value
from eval.tasks.questions import order_label


def test_a_number_at_an_edge_is_in_the_bin_that_begins_there():
    edges = (1000, 2000, 4000)
    assert [find_bin(x, edges) for x in (999, 1000, 1999, 2000, 3999, 4000, 10**6)] == [0, 1, 1, 2, 2, 3, 3]
    labels = [label_value(x, (10, 20.0)) for x in (-5, 9.99, 10, 19.99, 20, 1e9)]
    assert labels == ["<10", "<10", "10-20", "10-20", "20+", "20+"]
    assert [label_value(x, [0.5]) for x in (0.4, 0.5)] == ["<0.5", "0.5+"]


def test_bins_with_near_edges_have_different_names():
    assert [label_value(x, [1_000_000, 1_000_001]) for x in (0, 1_000_000, 1_000_001)] == [
        "<1000000", "1000000-1000001", "1000001+",
    ]  # fmt: skip


def test_lengths_are_written_in_thousands():
    assert label_bin(1000, 1500, write=format_tokens) == "1k-1500"
    assert [format_tokens(n) for n in (500, 4000, 4000.0, 1500)] == ["500", "4k", "4k", "1500"]


def test_names_of_bins_sort_by_their_numbers():
    names = ["10-30 min", "60+ min", "unknown", "3-10 min", "<1 min", "1-3 min"]
    assert sorted(names, key=order_label) == ["<1 min", "1-3 min", "3-10 min", "10-30 min", "60+ min", "unknown"]
    assert sorted(["150", "9.5", "30"], key=order_label) == ["9.5", "30", "150"]
