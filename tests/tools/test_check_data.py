import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from internvl.data.encode import SampleEncoder
from internvl.data.meta import load_meta
from internvl.data.records import RecordFile
from internvl.tools import check_data
from internvl.tools.check_data import RoughTokenizer, main
from internvl.tools.data_report import make_histogram
from tests.data.conftest import conversation
from tests.train.tiny_run import make_checkpoint

ROWS = {"good": 30, "mixed": 20}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("check") / "tiny")


@pytest.fixture
def meta(tmp_path):
    """30 good rows seen twice an epoch; 20 rows of which every tenth is no json and every fifth lacks its picture."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (90, 30)).save(tmp_path / "images/a.png")
    good = {"conversations": conversation("What?", "A cat."), "image": "a.png"}
    lines = [json.dumps(good)] * ROWS["good"]
    (tmp_path / "good.jsonl").write_text("\n".join(lines))
    lines = [
        "{" if row % 10 == 9 else json.dumps(good | ({"image": "b.png"} if row % 5 == 0 else {})) for row in range(20)
    ]
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    entries = {name: {"annotation": f"{name}.jsonl", "root": "images"} for name in ROWS}
    entries["good"]["repeat_time"] = 2
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(entries))
    return path


def check(meta, *flags, workers=0):
    out = meta.parent / "out"
    flags = (*flags, "--force_image_size", "28", "--workers", str(workers), "--out", str(out))
    code = main([str(meta), *flags])
    report = out / "report.json"
    return code, json.loads(report.read_text()) if report.exists() else None


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_problems_are_told_and_end_with_code_1(meta, capsys, workers):
    code, report = check(meta, workers=workers)
    assert code == 1
    assert report["problems_by_kind"] == {"missing": 4, "json": 2}
    assert (report["num_checked"], report["num_problems"], report["is_complete"]) == (50, 6, True)
    printed = capsys.readouterr().out
    assert "problems: 6 (12.00% of 50 rows; allowed are 1.00%)" in printed
    assert "mixed, row 9: not a json line" in printed
    problems = [json.loads(line) for line in (meta.parent / "out/problems.jsonl").read_text().splitlines()]
    assert [(problem["source"], problem["row"]) for problem in problems] == [
        ("mixed", n) for n in (0, 5, 9, 10, 15, 19)
    ]
    assert set(problems[0]) == {"source", "row", "kind", "cause"}


def test_bearable_problems_end_with_code_0(meta):
    assert check(meta, "--max_skipped", "0.12")[0] == 0
    assert check(meta, "--max_skipped", "0.11")[0] == 1


def test_only_the_first_problems_of_a_kind_are_printed(meta, capsys):
    (meta.parent / "mixed.jsonl").write_text("{\n" * 20)
    check(meta)
    printed = capsys.readouterr().out
    assert printed.count("not a json line") == 10
    assert "and 10 more" in printed


def test_sizes_are_those_of_training(meta, checkpoint):
    flags = ("--dynamic_image_size", "True", "--use_thumbnail", "True", "--max_dynamic_patch", "4")
    _, report = check(meta, "--model", str(checkpoint), *flags)
    assert report["is_exact"]
    args = check_data.DataTrainingArguments(
        force_image_size=28, dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=4
    )
    encoder = check_data.make_encoder(args, model=str(checkpoint), tokenizer=None)
    num_tokens, num_tiles = encoder.measure(RecordFile(load_meta(meta)[0])[0])
    assert num_tiles == 4
    good, mixed = report["sources"]
    assert good["mean_tokens"] == good["max_tokens"] == num_tokens
    assert (good["documents_per_epoch"], good["tokens_per_epoch"]) == (60, 60 * num_tokens)
    assert (mixed["documents_per_epoch"], mixed["tiles_per_epoch"]) == (20, 14 * num_tiles)


def test_template_and_tile_size_are_those_of_the_checkpoint(meta, checkpoint, capsys):
    out = meta.parent / "out"
    main([str(meta), "--workers", "0", "--out", str(out), "--model", str(checkpoint), "--dynamic_image_size", "True"])
    report = json.loads((out / "report.json").read_text())
    assert (report["measured_with"]["force_image_size"], report["measured_with"]["conv_style"]) == (
        28,
        "internlm2-chat",
    )
    printed = capsys.readouterr().out
    assert "template internlm2-chat, tiles of 28 pixels, 1 to 12 tiles per image, no thumbnail" in printed


def test_a_template_that_the_tokenizer_does_not_know_is_refused(meta, checkpoint, capsys):
    assert main([str(meta), "--workers", "0", "--model", str(checkpoint), "--conv_style", "phi3-chat"]) == 2
    assert "the tokenizer does not know <|end|>" in capsys.readouterr().err


def test_a_packed_rows_limits_count_only_with_packing(meta):
    flags = ("--dynamic_image_size", "True", "--max_dynamic_patch", "3", "--num_images_expected", "2")
    assert "length" not in check(meta, *flags)[1]["problems_by_kind"]
    assert check(meta, *flags, "--use_packed_ds", "True")[1]["problems_by_kind"]["length"] == 44


def test_damaged_pictures_are_found_by_decoding(meta):
    picture = meta.parent / "images/a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(picture)
    picture.write_bytes(picture.read_bytes()[:-3000])
    assert "image" not in check(meta)[1]["problems_by_kind"]
    assert check(meta, "--decode")[1]["problems_by_kind"]["image"] == 44


def test_the_picture_of_the_histograms_is_written(meta):
    check(meta)
    with Image.open(meta.parent / "out/histograms.png") as picture:
        assert picture.width > 1000


def test_nothing_usable_is_no_crash(meta, capsys):
    for name in ROWS:
        (meta.parent / f"{name}.jsonl").write_text("{\n" * 3 if name == "good" else "")
    code, report = check(meta)
    assert code == 1
    assert report["histograms"] == {"num_tokens": None, "num_tiles": None}
    assert "about 0 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tokenizer", "/nowhere"), "checkpoint folder /nowhere does not exist"),
        (("--force_image_size", "27"), "--force_image_size 27 is not a multiple"),
        (("--workers", "-1"), "--workers -1: expected 0 or larger"),
        (("--data_root", "/nowhere"), "is not a file; tried"),
        (("--conv_style", "none"), "unknown conversation template 'none'"),
    ],
)
def test_what_cannot_be_checked_ends_with_code_2(meta, capsys, flags, message):
    assert main([str(meta), "--workers", "0", "--out", str(meta.parent / "out"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupted_check_reports_what_it_found(meta, monkeypatch, capsys):
    run = check_data.Survey.run

    def interrupt(self, **options):
        chunks = run(self, **options)
        yield next(chunks)
        raise KeyboardInterrupt

    monkeypatch.setattr(check_data.Survey, "run", interrupt)
    code, report = check(meta)
    assert code == 130
    assert (report["num_checked"], report["is_complete"]) == (30, False)
    assert "interrupted: 30 of 50 rows were looked at" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_without_a_traceback(meta):
    good = (meta.parent / "good.jsonl").read_text().splitlines()[0]
    (meta.parent / "good.jsonl").write_text((good + "\n") * 300_000)
    command = [sys.executable, "-m", "internvl.tools.check_data", str(meta), "--out", str(meta.parent / "out")]
    process = subprocess.Popen(
        [*command, "--workers", "1", "--dynamic_image_size", "True"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    line = ""
    while "checking" not in line:
        line = process.stderr.readline()
    time.sleep(3)  # into the middle of it
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: " in out
    assert "Traceback" not in err
    assert not json.loads((meta.parent / "out/report.json").read_text())["is_complete"]


@pytest.mark.parametrize(
    ("sizes", "edges", "counts"),
    [
        ([3, 3, 4], (3, 4, 5), (2, 1)),
        ([0], (0, 1), (1,)),
        ([0, 99], tuple(range(0, 101, 10)), (1, *[0] * 8, 1)),
        ([1000, 33_999], tuple(range(0, 35_001, 5000)), (1, 0, 0, 0, 0, 0, 1)),
    ],
)
def test_histograms_have_round_edges_and_lose_nothing(sizes, edges, counts):
    histogram = make_histogram(np.array(sizes))
    assert (histogram.edges, histogram.counts) == (edges, counts)


def test_bars_are_as_long_as_their_counts():
    lines = make_histogram(np.array([1] * 40 + [2] * 10 + [4])).lines()
    assert [line.count("#") for line in lines] == [40, 10, 0, 1]
    assert lines[0].split() == ["1", "|", "#" * 40, "40"]


def test_text_is_estimated_by_its_bytes_and_special_tokens_count_once():
    tokenizer = RoughTokenizer(["<img>", "<|im_end|>"])
    assert len(tokenizer("12345678")["input_ids"]) == 2
    assert len(tokenizer("你好<img>12345<|im_end|>")["input_ids"]) == 2 + 1 + 2 + 1
    assert tokenizer("")["input_ids"] == []
    assert isinstance(
        check_data.make_encoder(check_data.DataTrainingArguments(), model=None, tokenizer=None), SampleEncoder
    )
