"""What runs are called."""

import pytest

from eval.report.labels import format_stride, label_setting, name_runs
from internvl.errors import ConfigError
from tests.eval.report.results import make_result


def test_a_run_that_stands_alone_is_named_by_its_method():
    settings = {"rope_scaling": "yarn:4", "logn_scaling": 192, "ablate": "no_image", "dtype": "float32"}
    assert name_runs([make_result()]) == ["V2PE stride 1"]
    assert label_setting(make_result(settings=settings).settings) == "V2PE stride 1, yarn:4, log-n 192, no image"
    assert name_runs([make_result(settings=settings)]) == ["V2PE stride 1, yarn:4, log-n 192, no image"]


def test_names_say_what_differs():
    plain, unscaled = make_result("default", None), make_result("default", None, settings={"rope_scaling": "none"})
    runs = [plain, unscaled, make_result(stride=1 / 16), make_result("v2pe_rnd", None)]
    names = ["default positions", "default positions, unscaled", "V2PE stride 1/16", "V2PE random strides"]
    assert name_runs(runs) == names
    ablated = make_result(settings={"ablate": "text_only"})
    assert name_runs([make_result(), ablated]) == ["V2PE stride 1", "V2PE stride 1, text only"]


def test_what_is_the_same_in_all_runs_is_left_out():
    names = name_runs([make_result(checkpoint="abc"), make_result(checkpoint="def")])
    assert names == ["checkpoint abc", "checkpoint def"]


def test_quantized_caches_are_distinguished():
    quantized = make_result(settings={"kv_cache": "quantized"})
    assert name_runs([make_result(), quantized]) == ["V2PE stride 1", "V2PE stride 1, kv_cache quantized"]


def test_equal_runs_in_two_folders_are_distinguished_by_their_folders():
    results = [make_result(folder=f"/x/{run}/mm_niah/retrieval-text-test") for run in ("first", "second")]
    assert name_runs(results) == ["V2PE stride 1, first", "V2PE stride 1, second"]


def test_tasks_with_limits_of_their_own_are_one_run():
    results = [make_result(task=f"g/{name}", settings={"max_num": number}) for name, number in (("a", 6), ("b", 12))]
    assert name_runs(results) == ["V2PE stride 1"] * 2
    other = make_result(task="g/a", settings={"max_num": 1})
    assert name_runs([*results, other])[::2] == ["max_num 6", "max_num 1"]


def test_runs_take_the_names_that_they_are_given():
    results = [make_result(task=task, folder=f"/x/{run}/{task}") for run in ("1", "2") for task in ("g/a", "g/b")]
    assert name_runs(results, ["old", "new"]) == ["old", "old", "new", "new"]
    for names in (["old"], ["old", "old"], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match="different one for each of the 2 runs: /x/1, /x/2"):
            name_runs(results, names)


def test_strides_are_written_as_they_are_typed():
    strides = {64: "64", 1: "1", 2.5: "2.5", 1 / 16: "1/16", 3 / 16: "3/16", 1 / 3: "1/3", 0.3: "0.3", 256: "256"}
    assert [format_stride(stride) for stride in strides] == list(strides.values())
