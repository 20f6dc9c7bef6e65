import errno
import json
import os
import re
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from internvl.data.cursor import merge_states
from internvl.data.dataset import read_in_workers
from internvl.data.encode import SampleEncoder
from internvl.data.loader import build_train_loader
from internvl.data.packing import PackingLimits
from internvl.data.plan import ALL_TILES, RankShare, RowOptions, TileShare
from internvl.data.storage.outage import DataOutage, OutageWatch
from internvl.errors import ConfigError, DataError
from internvl.parallel.vision import split_tiles

from .conftest import conversation
from .numbered_videos import read_numbers, tile_pictures, write_video

LIMITS = PackingLimits(max_tokens=500, max_tiles=12, max_open_rows=3)


def name_of(number: int) -> str:
    return f"doc{number:03d}"


@pytest.fixture
def make_lines(make_image):
    """Rows whose question names the row; every third one has an image, some have two."""

    def make(num_rows: int):
        names = [make_image(f"{width}.png", width, 30, seed=width).name for width in (30, 60)]
        lines = []
        for row in range(num_rows):
            images = names[: row % 3] if row % 2 else []
            question = f"{'<image>' * len(images)} {name_of(row)} {'word ' * (row % 7)}"
            lines.append({"conversations": conversation(question, "yes"), "image": images})
        return lines

    return make


@pytest.fixture
def make_loader(make_encoder):
    def make(*specs, **options):
        version = {"rope_pos_id_version": "v2pe_rnd"}
        encoder = make_encoder(**(version | options.pop("encoder", {})))
        options = {"num_streams": 1, "packing": LIMITS} | options
        rows = RowOptions(
            **{field.name: options.pop(field.name) for field in fields(RowOptions) if field.name in options}
        )
        share = None
        if {"first_stream", "streams_per_rank", "tiles"} & options.keys():
            first = options.pop("first_stream", 0)
            streams = range(first, first + options.pop("streams_per_rank", rows.num_streams - first))
            share = RankShare(streams, options.pop("tiles", ALL_TILES))
        return build_train_loader(specs, encoder, rows, share=share, **options)

    return make


@pytest.fixture
def read_names(tokenizer):
    """The names of the documents of a batch."""

    def read(batch) -> list[str]:
        return re.findall(r"doc\d{3}", tokenizer.decode(batch["input_ids"][0].tolist()))

    return read


def take(loader, num_batches):
    return list(islice(loader, num_batches))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key


# One order for all cluster shapes


def test_rows_do_not_depend_on_the_number_of_ranks(make_loader, make_source, make_lines):
    spec = make_source("a", make_lines(60), data_augment=True)
    alone = take(make_loader(spec, num_streams=2, streams_per_rank=2), 10)
    ranks = [make_loader(spec, num_streams=2, first_stream=rank, streams_per_rank=1) for rank in range(2)]
    together = [batch for step in zip(*(take(rank, 5) for rank in ranks), strict=True) for batch in step]
    assert_same(alone, together)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_rows_do_not_depend_on_the_number_of_workers(make_loader, make_source, make_lines, num_workers):
    spec = make_source("a", make_lines(40), data_augment=True)
    expected = take(make_loader(spec, num_streams=3, streams_per_rank=3), 9)
    assert_same(take(make_loader(spec, num_streams=3, streams_per_rank=3, num_workers=num_workers), 9), expected)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(make_loader, make_source, make_lines, read_names):
    spec = make_source("a", make_lines(40))
    first = take(make_loader(spec, seed=1), 5)
    assert_same(first, take(make_loader(spec, seed=1), 5))
    assert [read_names(batch) for batch in first] != [read_names(batch) for batch in take(make_loader(spec, seed=2), 5)]


def test_torch_random_state_is_left_alone(make_loader, make_source, make_lines):
    before = torch.get_rng_state()
    take(make_loader(make_source("a", make_lines(20)), num_workers=1), 2)
    assert torch.equal(torch.get_rng_state(), before)


# Epochs


@pytest.mark.parametrize("num_streams", [1, 3])
def test_every_epoch_has_every_document_once(make_loader, make_source, make_lines, read_names, num_streams):
    loader = make_loader(make_source("a", make_lines(50)), num_streams=num_streams)
    names: list[str] = []
    for stream in range(num_streams):
        num_rows = len(list(loader.plan.plan_epoch(stream, 0)))
        specs = [file.spec for file in loader.plan.files]
        one = make_loader(*specs, num_streams=num_streams, first_stream=stream, streams_per_rank=1)
        names += [name for batch in take(one, num_rows) for name in read_names(batch)]
    assert sorted(names) == [name_of(row) for row in range(50)]


def test_epochs_follow_each_other_in_new_order(make_loader, make_source, make_lines, read_names):
    loader = make_loader(make_source("a", make_lines(20)), packing=None)
    names = [name for batch in take(loader, 40) for name in read_names(batch)]
    assert sorted(names[:20]) == sorted(names[20:]) == [name_of(row) for row in range(20)]
    assert names[:20] != names[20:]


def test_sequential_order_keeps_meta_order_over_streams(make_loader, make_source, make_lines, read_names):
    lines = make_lines(12)
    specs = [make_source("a", lines[:5]), make_source("b", lines[5:])]
    loader = make_loader(*specs, num_streams=2, packing=None, data_order="sequential")
    assert [read_names(batch) for batch in take(loader, 12)] == [[name_of(row)] for row in range(12)]


def test_repeats_of_a_document_draw_strides_of_their_own(make_loader, make_source, make_lines):
    spec = make_source("a", make_lines(6)[5:], repeat_time=30)
    batches = take(make_loader(spec, packing=None, data_order="sequential"), 30)
    drawn = [tuple(batch["image_strides"].tolist()) for batch in batches]
    assert len(drawn[0]) == 2
    assert len(set(drawn)) > 10


def test_rows_and_documents_per_epoch(make_loader, make_source, make_lines):
    specs = [make_source("a", make_lines(30), repeat_time=1.5), make_source("b", make_lines(4))]
    loader = make_loader(*specs, num_streams=4)
    assert sum(loader.plan.documents_per_source) == 49
    assert loader.rows_per_epoch() == min(len(list(loader.plan.plan_epoch(stream, 0))) for stream in range(4))
    assert make_loader(*specs, num_streams=4, packing=None).rows_per_epoch() == 12
    assert make_loader(*specs, packing=None, documents_per_row=10).rows_per_epoch() == 5


def test_packed_rows_keep_the_limits_and_their_borders(make_loader, make_source, make_lines):
    for batch in take(make_loader(make_source("a", make_lines(50))), 12):
        length = batch["input_ids"].shape[1]
        assert batch["labels"].shape == (1, length)
        assert length <= LIMITS.max_tokens
        assert len(batch["pixel_values"]) == len(batch["image_flags"]) <= LIMITS.max_tiles
        borders = batch["cu_seqlens"]
        assert borders[0] == 0
        assert borders[-1] == length
        assert (batch["input_ids"][0, borders[:-1].long()] == 1).all()  # every document opens with <s>
        assert (batch["labels"][0, borders[:-1].long()] == -100).all()


def test_without_packing_every_document_is_a_row(make_loader, make_source, make_lines):
    batches = take(make_loader(make_source("a", make_lines(10)), packing=None, documents_per_row=3), 4)
    assert [len(batch["cu_seqlens"]) - 1 for batch in batches] == [3, 3, 3, 1]


# Resuming


def continue_from(loader, states):
    """As a checkpoint does it: through json, merged over ranks."""
    loader.load_state_dict(merge_states(json.loads(json.dumps(states))))
    return loader


def stop_after(loader, num_batches):
    batches = iter(loader)
    for _ in range(num_batches):
        next(batches)
    return loader.state_dict()


# In the middle of a step, and in the second and third epoch; processes take long to start.
@pytest.mark.parametrize("packing", [LIMITS, None])
@pytest.mark.parametrize(
    ("workers_before", "workers_after", "stops"), [(0, 0, (1, 6, 13)), (0, 2, (6,)), (1, 0, (13,)), (2, 1, (6,))]
)
def test_a_stopped_loader_continues_with_the_same_batches(
    make_loader, make_source, make_lines, packing, workers_before, workers_after, stops
):
    """Whatever the number of workers: they run ahead, the state is that of the last batch handed out."""
    specs = [make_source("a", make_lines(20), data_augment=True), make_source("b", ["{", *make_lines(7), "{"])]
    options = {"num_streams": 2, "packing": packing, "documents_per_row": 2, "max_skipped": 1.0}
    whole = make_loader(*specs, **options)
    batches = take(whole, 19)
    for num_before in stops:
        state = stop_after(make_loader(*specs, **options, num_workers=workers_before), num_before)
        resumed = continue_from(make_loader(*specs, **options, num_workers=workers_after), [state])
        assert_same(take(resumed, 19 - num_before), batches[num_before:])
        assert (resumed.ledger.num_seen, resumed.ledger.num_skipped) == (
            whole.ledger.num_seen,
            whole.ledger.num_skipped,
        )


@pytest.mark.parametrize("policy", ["best_fit", "balanced"])
@pytest.mark.parametrize(("workers", "stops"), [(0, (1, 7, 16)), (2, (7,))])
def test_rows_of_every_policy_continue_exactly(make_loader, make_source, make_lines, policy, workers, stops):
    """Documents that wait are part of the cursor; every one comes once in an epoch."""
    spec = make_source("a", make_lines(40))
    options = {"num_streams": 2, "packing_policy": policy, "num_workers": workers}
    batches = take(make_loader(spec, **options), 24)
    for number in stops:
        state = stop_after(make_loader(spec, **options), number)
        assert any(cursor["open"] or cursor["ready"] for cursor in state["streams"].values())
        resumed = continue_from(make_loader(spec, **options), [state])
        assert_same(take(resumed, 24 - number), batches[number:])
    plan = make_loader(spec, **options).plan
    refs = [ref for stream in range(2) for row in plan.plan_epoch(stream, 0) for ref in row.content.refs]
    assert sorted(ref.row for ref in refs) == list(range(40))


def test_a_state_of_another_policy_is_refused(make_loader, make_source, make_lines):
    spec = make_source("a", make_lines(12))
    state = stop_after(make_loader(spec), 1)
    with pytest.raises(ConfigError, match="packing_policy was 'greedy', now it is 'balanced'"):
        make_loader(spec, packing_policy="balanced").load_state_dict(merge_states([state]))


def test_a_loader_can_be_stopped_after_every_row(make_loader, make_source, make_lines):
    """Among them rows that were finished together, at the end of an epoch."""
    spec = make_source("a", make_lines(12))
    limits = PackingLimits(max_tokens=450, max_tiles=4, max_open_rows=4)
    batches = take(make_loader(spec, packing=limits), 22)
    states = [stop_after(make_loader(spec, packing=limits), number) for number in range(20)]
    assert {len(state["streams"]["0"]["ready"]) for state in states} >= {0, 1, 2}
    for number, state in enumerate(states):
        resumed = continue_from(make_loader(spec, packing=limits), [state])
        assert resumed.state_dict() == state
        assert_same(take(resumed, 2), batches[number : number + 2])


def test_other_numbers_of_ranks_continue_the_same_rows(make_loader, make_source, make_lines):
    spec = make_source("a", make_lines(30), data_augment=True)
    alone = make_loader(spec, num_streams=4, streams_per_rank=4)
    batches = take(alone, 20)
    pairs = [make_loader(spec, num_streams=4, first_stream=first, streams_per_rank=2) for first in (0, 2)]
    states = [stop_after(loader, 6) for loader in pairs]
    resumed = continue_from(make_loader(spec, num_streams=4, streams_per_rank=4), states)
    assert_same(take(resumed, 8), batches[12:])
    single = continue_from(make_loader(spec, num_streams=4, first_stream=3, streams_per_rank=1), states)
    assert_same(take(single, 2), batches[15::4])


def test_resuming_reads_no_document_before_the_cursor(make_loader, make_source, make_lines, monkeypatch):
    spec = make_source("a", make_lines(60))
    state = stop_after(make_loader(spec), 8)
    resumed = continue_from(make_loader(spec), [state])
    measured = []
    measure = type(resumed.plan).measure
    monkeypatch.setattr(type(resumed.plan), "measure", lambda plan, ref: measured.append(ref) or measure(plan, ref))
    take(resumed, 1)
    order = resumed.plan.order_stream(0, 0)
    index = state["streams"]["0"]["index"]
    assert [ref.row for ref in measured] == order.row[index : index + len(measured)].tolist()


def test_a_state_is_small(make_loader, make_source, make_lines):
    """It holds the numbers of open documents: as large after many rows as after few."""
    loader = make_loader(make_source("a", make_lines(60)))
    sizes = []
    for number, _ in enumerate(loader):
        sizes.append(len(json.dumps(loader.state_dict()["streams"])))
        if number == 40:
            break
    assert max(sizes) < 1000


def test_ranks_that_share_rows_have_one_state(make_loader, make_source, make_lines, bad_images, tmp_path):
    unfit = {"conversations": conversation("<image> doc998 ", "a"), "image": "missing.png"}
    bad = {"conversations": conversation("<image> doc999 ", "a"), "image": "cut.png"}
    spec = make_source("a", [*make_lines(6), bad, unfit])
    options = {"packing": None, "documents_per_row": 3, "skipped_path": tmp_path / "skipped.jsonl"}
    loaders = [make_loader(spec, **options, tiles=TileShare(rank, 2)) for rank in range(2)]
    states = [stop_after(loader, 3) for loader in loaders]
    assert sum(loader.ledger.num_skipped for loader in loaders) == 2
    listed = (tmp_path / "skipped.jsonl").read_text()
    resumed = [continue_from(make_loader(spec, **options, tiles=TileShare(rank, 2)), states) for rank in range(2)]
    assert [loader.ledger.num_seen for loader in resumed] == [loader.ledger.num_seen for loader in loaders]
    assert sum(loader.ledger.num_skipped for loader in resumed) == 2
    batches = [take(loader, 4) for loader in resumed]
    assert (tmp_path / "skipped.jsonl").read_text() == listed  # each document once, over all starts
    for after, before in zip(batches, loaders, strict=True):
        assert_same(after, take(before, 7)[3:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "data seed was 0, now it is 7"),
        ({"num_streams": 4, "streams_per_rank": 4}, r"rows per step .* was 2, now it is 4"),
        ({"packing": PackingLimits(400, 12, 3)}, "packing was 'max_tokens 500, .* now it is 'max_tokens 400"),
        ({"packing": None}, "packing was 'max_tokens 500, .* now it is 'none'"),
        ({"data_order": "sequential"}, "data_order was 'shuffle', now it is 'sequential'"),
        ({"encoder": {"max_seq_length": 300}}, "max_seq_length was '4096', now it is '300'"),
    ],
)
def test_a_state_of_another_run_is_refused(make_loader, make_source, make_lines, change, message):
    spec = make_source("a", make_lines(20))
    options = {"num_streams": 2, "streams_per_rank": 2}
    state = stop_after(make_loader(spec, **options), 2)
    with pytest.raises(ConfigError, match=message + "(.|\n)*--ignore_data_skip True"):
        continue_from(make_loader(spec, **(options | change)), [state])


def test_a_state_of_other_data_is_refused(make_loader, make_source, make_lines):
    state = stop_after(make_loader(make_source("a", make_lines(20))), 2)
    with pytest.raises(ConfigError, match=r"data set 0 was 'a, 20 rows, repeat_time 1.*now it is 'a, 21 rows"):
        continue_from(make_loader(make_source("a", make_lines(21))), [state])


def test_a_broken_state_is_refused(make_loader, make_source, make_lines):
    loader = make_loader(make_source("a", make_lines(20)), num_streams=2, streams_per_rank=2)
    state = stop_after(loader, 2)
    with pytest.raises(ConfigError, match="version 99, expected 1"):
        loader.load_state_dict(state | {"version": 99})
    first, second = (state["streams"][name] for name in "01")
    with pytest.raises(ConfigError, match="cannot be read"):
        loader.load_state_dict(state | {"streams": {"0": {"skipped": 0}, "1": second}})
    with pytest.raises(ConfigError, match=r"\[3, 1\] rows handed out per stream"):
        loader.load_state_dict(state | {"streams": {"0": first | {"rows": 3}, "1": second}})


# Bad documents


BAD_LINES = {
    "not a json line": "{",
    "'conversations' is nothing": {},
    "1 <image> for 0 images": {"conversations": conversation("<image>", "a")},
    "2 <image> for 1": {"conversations": conversation("<image><image>", "a"), "image": "30.png"},
    "none.png not found": {"conversations": conversation("q", "a"), "image": "none.png"},
    "empty.png cannot be read": {"conversations": conversation("q", "a"), "image": "empty.png"},
    "expected at most max_seq_length": {"conversations": conversation("word " * 5000, "a")},
    "tokens and 14 tiles, expected at most 500 tokens and 12 tiles": {
        "conversations": conversation("<image><image>", "a"),
        "image": ["30x20.png", "30x20.png"],
    },
    "x.mp4 not found": {"conversations": conversation("<video>", "a"), "video": "x.mp4"},
}


@pytest.fixture
def bad_images(make_image):
    make_image("empty.png").write_bytes(b"")
    make_image("30x20.png", 42, 28)
    path = make_image("cut.png", 30, 30)
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("cause", "num_workers"),
    [*((cause, 0) for cause in BAD_LINES), ("not a json line", 2), ("empty.png cannot be read", 2)],
)
def test_a_bad_document_is_skipped_counted_and_listed_once(
    make_loader, make_source, make_lines, read_names, bad_images, tmp_path, cause, num_workers
):
    lines = make_lines(6)
    spec = make_source("a", [*lines[:3], BAD_LINES[cause], *lines[3:]])
    path = tmp_path / "out" / "skipped.jsonl"
    loader = make_loader(spec, packing=LIMITS, skipped_path=path, num_workers=num_workers)
    num_rows = len(list(loader.plan.plan_epoch(0, 0)))
    names = [name for batch in take(loader, num_rows) for name in read_names(batch)]
    take(loader, 2 * num_rows)  # seen again, not listed again
    assert sorted(names) == [name_of(row) for row in range(6)]
    (entry,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (entry["source"], entry["row"]) == ("a", 3)
    assert cause in entry["cause"]
    assert loader.ledger.num_skipped >= 2


def test_documents_are_listed_once_whatever_their_names_hold(make_loader, make_source, make_lines, tmp_path):
    lines = [{"conversations": conversation("q", "a"), "image": "two\u2028lines.png"}, *make_lines(4)]
    path = tmp_path / "skipped.jsonl"
    spec = replace(make_source("a", lines), root=Path(os.fsdecode(b"no utf-8 \xff")))
    lines_of_runs = []
    for _ in range(2):
        loader = make_loader(spec, skipped_path=path, max_skipped=1.0)
        loader.ledger.restore(0, 0)  # what a run that goes on does
        take(loader, 1)
        lines_of_runs.append(path.read_text(encoding="utf-8").split("\n"))
    assert lines_of_runs[0] == lines_of_runs[1]
    assert json.loads(lines_of_runs[0][0])["row"] in range(5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_cut_short_leaves_its_row_without_the_document(
    make_loader, make_source, make_lines, read_names, bad_images, tmp_path, num_workers
):
    bad = {"conversations": conversation("<image> doc999 ", "a"), "image": "cut.png"}
    spec = make_source("a", [*make_lines(4), bad])
    path = tmp_path / "skipped.jsonl"
    options = {"packing": None, "documents_per_row": 5, "skipped_path": path, "num_workers": num_workers}
    loader = make_loader(spec, **options)
    for batch in take(loader, 3):
        assert sorted(read_names(batch)) == [name_of(row) for row in range(4)]
        assert len(batch["cu_seqlens"]) == 5
        assert len(batch["pixel_values"]) == 1  # of row 1; row 3 has no image
    (entry,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert "cut.png cannot be read" in entry["cause"]
    assert entry["row"] == 4
    assert (loader.ledger.num_seen, loader.ledger.num_skipped) == (15, 3)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_row_with_nothing_readable_is_replaced_by_the_next_one(
    make_loader, make_source, make_lines, read_names, bad_images, num_workers
):
    bad = {"conversations": conversation("<image> doc999 ", "a"), "image": "cut.png"}
    lines = make_lines(6)
    spec = make_source("a", [*lines[:2], bad, bad, *lines[2:]])
    loader = make_loader(spec, packing=None, data_order="sequential", num_workers=num_workers)
    names = [read_names(batch)[0] for batch in take(loader, 8)]
    assert names == [name_of(row) for row in (0, 1, 2, 2, 2, 3, 4, 5)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_of_which_nothing_can_be_used_is_an_error_with_causes(make_loader, make_source, num_workers):
    lines = [{"conversations": conversation("q", "a"), "image": "none.png"}] * 7
    loader = make_loader(make_source("a", lines), num_workers=num_workers, data_order="sequential")
    with pytest.raises(DataError, match="7 of 7 documents cannot be used") as caught:
        take(loader, 1)
    assert "a, row 0: image " in str(caught.value)
    assert str(caught.value).count("none.png not found") == 5
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match="7 of 7 documents"):
        loader.rows_per_epoch()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_of_which_nothing_can_be_decoded_is_an_error(make_loader, make_source, bad_images, num_workers):
    lines = [{"conversations": conversation("q", "a"), "image": "cut.png"}] * 3
    loader = make_loader(make_source("a", lines), packing=None, num_workers=num_workers)
    with pytest.raises(DataError, match="16 rows in sequence have no readable document") as caught:
        take(loader, 1)
    assert "cut.png cannot be read" in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_documents_are_an_error(make_loader, make_source, make_lines, num_workers):
    spec = make_source("a", [*make_lines(196), *["{"] * 4])
    options = {"packing": None, "documents_per_row": 4, "data_order": "sequential", "num_workers": num_workers}
    assert len(take(make_loader(spec, **options, max_skipped=0.02), 49)) == 49
    loader = make_loader(spec, **options, max_skipped=0.01)
    with pytest.raises(DataError, match=r"4 of 204 documents cannot be used") as caught:
        take(loader, 60)
    assert "allowed are 1.0% (max_skipped)" in str(caught.value)


def test_few_documents_say_nothing_about_the_share_of_bad_ones(make_loader, make_source, make_lines):
    loader = make_loader(make_source("a", [*make_lines(10), "{"]), packing=None)
    assert len(take(loader, 20)) == 20


def test_skips_after_the_last_row_of_an_epoch_are_counted(make_loader, make_source, make_lines):
    loader = make_loader(make_source("a", [*make_lines(4), "{"]), packing=None, data_order="sequential")
    take(loader, 4)
    assert (loader.ledger.num_seen, loader.ledger.num_skipped) == (4, 0)
    take(loader, 5)
    assert (loader.ledger.num_seen, loader.ledger.num_skipped) == (4 + 6, 1)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_streams": 5}, "4 documents for 5 streams"),
        ({"num_streams": 2, "first_stream": 2}, "streams 2 to 1 are wanted"),
        ({"num_streams": 2, "first_stream": 1, "streams_per_rank": 2}, "streams 1 to 2 are wanted, there are 2"),
        ({"data_order": "random"}, "data_order is 'random'"),
        ({"max_skipped": 3}, "max_skipped is 3"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_refused(make_loader, make_source, make_lines, options, message):
    with pytest.raises(ConfigError, match=message):
        make_loader(make_source("a", make_lines(4)), **options)


# Rows shared by ranks


@pytest.mark.parametrize("size", [2, 3, 7])
def test_ranks_that_share_rows_load_the_same_rows_and_each_its_part_of_the_tiles(
    make_loader, make_source, make_lines, size
):
    lines = [line | {"data_augment": True} for line in make_lines(12)]  # JPEG qualities are drawn per image
    specs, options = [make_source("a", lines)], {"encoder": {"dynamic_image_size": True, "max_dynamic_patch": 4}}
    whole = take(make_loader(*specs, **options), 4)
    parts = [take(make_loader(*specs, **options, tiles=TileShare(rank, size)), 4) for rank in range(size)]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        for share in shares:
            assert not share["damaged_documents"].any()
            for key in ("input_ids", "labels", "cu_seqlens", "image_strides"):
                assert torch.equal(share[key], batch[key])
            assert len(share["image_flags"]) == len(share["pixel_values"])
        counts = [len(share["pixel_values"]) for share in shares]
        assert max(counts) - min(counts) <= 1
        assert torch.equal(torch.cat([share["pixel_values"] for share in shares]), batch["pixel_values"])


def test_tiles_are_split_as_the_model_expects():
    for num_tiles in range(12):
        for size in range(1, 6):
            assert [TileShare(r, size).own_tiles(num_tiles) for r in range(size)] == split_tiles(num_tiles, size)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_keeps_its_place_in_a_shared_row(
    make_loader, make_source, make_lines, bad_images, tmp_path, num_workers
):
    bad = {"conversations": conversation("<image> doc999 ", "a"), "image": "cut.png"}
    spec = make_source("a", [*make_lines(2), bad])
    batches, ledgers = [], []
    for rank in range(2):
        path = tmp_path / f"skipped{rank}.jsonl"
        options = {"packing": None, "documents_per_row": 3, "data_order": "sequential", "num_workers": num_workers}
        loader = make_loader(spec, **options, tiles=TileShare(rank, 2), skipped_path=path)
        batches += take(loader, 1)
        ledgers.append((loader.ledger.num_skipped, path.exists()))
    assert [batch["damaged_documents"].tolist() for batch in batches] == [[0, 0, 0], [0, 0, 1]]  # rank 1 has its tile
    assert [len(batch["pixel_values"]) for batch in batches] == [1, 1]
    assert not batches[1]["pixel_values"].any()
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert ledgers == [(0, False), (1, True)]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("planned", "read"), [((30, 1), (60, 3)), ((60, 3), (30, 1))], ids=["grows", "shrinks"])
def test_an_image_that_changes_size_after_planning_ends_a_run_with_shared_rows(
    make_loader, make_source, make_image, monkeypatch, planned, read, num_workers
):
    encode = SampleEncoder.encode

    def change_and_encode(*words, **options):
        make_image("a.png", read[0], 30)
        return encode(*words, **options)

    monkeypatch.setattr(SampleEncoder, "encode", change_and_encode)
    images = [make_image("a.png", planned[0], 30).name, make_image("b.png", 30, 30).name]
    lines = [{"conversations": conversation("<image> what?", "a"), "image": image} for image in images]
    spec = make_source("a", [{"conversations": conversation("hello", "a")}, *lines])
    options = {"packing": None, "documents_per_row": 3, "data_order": "sequential", "num_workers": num_workers}
    loader = make_loader(spec, **options, tiles=TileShare(0, 2))
    message = (
        f"have {read[1] + 1} tiles, expected {planned[1] + 1} as planned: "
        rf"a, row 1 \({read[1]}\), a, row 2 \(1\); the file of one of them has changed"
    )
    with pytest.raises(DataError, match=message):
        take(loader, 1)


def test_a_document_unfit_for_planning_is_counted_by_the_first_rank_of_a_group(make_loader, make_source, make_lines):
    unfit = {"conversations": conversation("<image><image> doc999 ", "a"), "image": "missing.png"}
    spec = make_source("a", [*make_lines(4), unfit])
    counts = []
    for rank in range(2):
        loader = make_loader(spec, packing=None, documents_per_row=4, tiles=TileShare(rank, 2))
        take(loader, 3)
        counts.append(loader.ledger.num_skipped > 0)
    assert counts == [True, False]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_videos_are_planned_from_headers_and_loaded_frame_by_frame(
    make_loader, make_source, tmp_path, read_names, num_workers
):
    (tmp_path / "images").mkdir()
    lines = []
    for row, num_frames in enumerate((9, 30, 61)):
        name = write_video(tmp_path / "images" / f"{row}.mp4", num_frames).name
        lines.append({"conversations": conversation(f"<video> {name_of(row)}", "yes"), "video": name})
    source = make_source("clips", lines)
    options = {"encoder": {"min_num_frame": 2, "max_num_frame": 6}, "num_workers": num_workers}
    whole = take(make_loader(source, **options), 8)
    numbers = [read_numbers(tile_pictures(batch["pixel_values"])) for batch in whole]
    assert len({tuple(row) for row in numbers}) > 4  # every epoch draws other frames
    assert all(
        len(row) == int(batch["image_flags"].sum()) <= LIMITS.max_tiles
        for row, batch in zip(numbers, whole, strict=True)
    )
    assert sum(len(read_names(batch)) for batch in whole) > len(whole)
    shares = [take(make_loader(source, tiles=TileShare(rank, 3), **options), 8) for rank in range(3)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert all(torch.equal(part["input_ids"], batch["input_ids"]) for part in parts)
        assert torch.equal(torch.cat([part["pixel_values"] for part in parts]), batch["pixel_values"])


# What a row is made of


def test_rows_say_which_documents_they_hold(make_loader, make_source, make_lines, read_names, bad_images):
    """Names are row numbers here; a document that is left out, or replaced, is not among them."""
    bad = {"conversations": conversation("<image> doc999 ", "a"), "image": "cut.png"}
    specs = make_source("a", make_lines(4)), make_source("b", [bad, *make_lines(5)[1:]])
    for options in ({}, {"packing": None, "documents_per_row": 1}):
        sources = set()
        for batch in take(make_loader(*specs, **options), 9):
            refs = batch["document_refs"].tolist()
            assert [name_of(row) for _, row in refs] == read_names(batch)
            sources |= {source for source, _ in refs}
            assert [1, 0] not in refs
        assert sources == {0, 1}


def test_an_earlier_moment_can_be_described_later(make_loader, make_source, make_lines):
    loader = make_loader(make_source("a", make_lines(30)), num_streams=2, streams_per_rank=2)
    rows = iter(loader)
    next(rows)
    mark, state = loader.mark(), loader.state_dict()
    next(rows)
    assert loader.state_dict(mark) == state != loader.state_dict()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_fault_of_the_system_skips_no_document(make_loader, make_source, make_lines, monkeypatch, num_workers):
    monkeypatch.setattr("internvl.data.loader.OutageWatch", partial(OutageWatch, bearable_s=0))
    loader = make_loader(make_source("a", make_lines(20)), num_workers=num_workers)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(SampleEncoder, "encode", fail)
    with pytest.raises(DataOutage, match=r"the system cannot read data for 0 s; .*Too many open files"):
        next(iter(loader))
    assert loader.ledger.num_skipped == 0


def test_shared_memory_without_room_ends_the_run(make_loader, make_source, make_lines, monkeypatch):
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    loader = make_loader(make_source("a", make_lines(20)), num_workers=1)
    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(ConfigError, match=r"/dev/shm\) has no room .*fewer workers"):
        next(iter(loader))


def test_a_batch_is_pinned_whole_when_a_data_loader_asks(make_loader, make_source, make_lines, monkeypatch):
    """A DataLoader pins what has a method for it; without a GPU it does not ask."""
    loader = make_loader(make_source("a", make_lines(6)), pin_memory=True)
    assert read_in_workers(loader.dataset, num_workers=0, prefetch=2, pin_memory=loader.pin_memory).pin_memory
    row = next(iter(loader.dataset))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    pinned = row.pin_memory()
    assert (pinned.stream, pinned.planned) == (row.stream, row.planned)
    assert all(torch.equal(pinned.batch[name], value + 1) for name, value in row.batch.items())
