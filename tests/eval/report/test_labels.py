"""What runs are called."""

from eval.report.labels import label_runs, label_settings
from tests.eval.report.results import make_result


def test_runs_with_equal_positions_are_distinguished():
    labels = label_settings([make_result(checkpoint="abc"), make_result(checkpoint="def")])
    assert labels == ["v2pe_fix stride 1, checkpoint abc", "v2pe_fix stride 1, checkpoint def"]


def test_quantized_caches_are_distinguished():
    quantized = make_result(settings={"kv_cache": "quantized"})
    assert label_settings([make_result(), quantized]) == ["v2pe_fix stride 1", "v2pe_fix stride 1, kv_cache quantized"]


def test_equal_runs_in_two_folders_are_distinguished_by_their_folders():
    results = [make_result(folder=f"/x/{run}/mm_niah/retrieval-text-test") for run in ("first", "second")]
    assert label_settings(results) == ["v2pe_fix stride 1, first", "v2pe_fix stride 1, second"]


def test_tasks_with_limits_of_their_own_are_one_run():
    results = [make_result(task=f"g/{name}", settings={"max_num": number}) for name, number in (("a", 6), ("b", 12))]
    assert label_runs(results) == ["v2pe_fix stride 1"] * 2
    other = make_result(task="g/a", settings={"max_num": 1})
    assert label_runs([*results, other])[0] == "v2pe_fix stride 1, max_num 6"
