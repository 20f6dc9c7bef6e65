import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from eval.core.output import write_result
from eval.core.predictions import PartWriter, PredictionStore
from eval.core.result import read_predictions, read_settings
from eval.core.sample import Prediction, Sample
from internvl.errors import EvalError

SETTINGS = {"task": "t", "checkpoint": "abc", "rope_pos_id_stride": 1}


def predict(sample_id, response="blue"):
    return Prediction(sample_id, response, "blue", {"context_length": 5}, 10, 2, 7.5, 0.1)


def sample(sample_id):
    return Sample(sample_id, "?", (), "blue")


@pytest.fixture
def store(tmp_path):
    store = PredictionStore(tmp_path / "t", SETTINGS, {"checkpoint": "/somewhere"})
    store.prepare()
    return store


def append(store, *ids, rank=0, world_size=1):
    writer = store.open_part(rank, world_size)
    for sample_id in ids:
        writer.append(predict(sample_id))
    writer.close()
    return writer.path


def test_predictions_come_back_as_they_were(store):
    append(store, "a", 'odd "id"\n', "ü \ud83d")
    assert store.read() == {i: predict(i) for i in ("a", 'odd "id"\n', "ü \ud83d")}


def test_every_line_is_on_disk_at_once(store):
    writer = store.open_part(0, 1)
    writer.append(predict("a"))
    assert json.loads(writer.path.read_text())["id"] == "a"
    writer.append(predict("b"))
    assert len(writer.path.read_text().splitlines()) == 2


def test_merge_is_complete_ordered_and_ignores_other_samples(store):
    append(store, "c", "a", rank=1, world_size=2)
    append(store, "b", "x", rank=0, world_size=2)
    merged = store.merge([sample(i) for i in "abc"])
    assert [p.id for p in merged] == ["a", "b", "c"]
    assert read_predictions(store.folder) == merged


def test_missing_answers_are_an_error(store):
    append(store, "a")
    with pytest.raises(EvalError, match="1 of 2 samples have no answer"):
        store.merge([sample("a"), sample("b")])
    assert not store.merged_path.exists()


def test_equal_answers_count_once_and_different_ones_are_an_error(store):
    append(store, "a", rank=0, world_size=2)
    append(store, "a", rank=1, world_size=2)
    assert [*store.read()] == ["a"]
    other = store.open_part(2, 3)
    other.append(predict("a", "other"))
    other.close()
    with pytest.raises(EvalError, match="'a' was answered twice"):
        store.read()


@pytest.mark.parametrize("num_kept_bytes", [1, 40, -1])
def test_a_half_written_last_line_is_dropped(store, num_kept_bytes):
    path = append(store, "a", "b")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:num_kept_bytes])
    assert list(store.read()) == ["a"]  # another rank may be in the middle of writing it
    store.prepare()
    assert path.read_bytes() == first
    append(store, "b")
    assert list(store.read()) == ["a", "b"]


def test_a_broken_line_in_the_middle_is_an_error(store):
    path = append(store, "a")
    path.write_bytes(b'{"id": \n' + path.read_bytes())
    with pytest.raises(EvalError, match=r"line 1 is broken"):
        store.read()


def test_all_broken_and_doubled_lines_are_named_and_many_are_counted(store):
    path = append(store, *map(str, range(9)))
    lines = path.read_text().splitlines(keepends=True)
    doubled = json.dumps({**json.loads(lines[8]), "response": "other"}) + "\n"
    path.write_text("".join(["{\n", lines[0], "[]\n", *lines[1:], doubled]))
    with pytest.raises(EvalError, match=r"line 1 is broken .*; line 3 is .*; line 12: sample '8' was answered twice;"):
        store.read()
    path.write_text("x\n" * 8)
    with pytest.raises(EvalError, match=r"line 5 is broken .*; and 3 more; delete these lines"):
        store.read()


def test_a_line_without_a_field_is_an_error(store):
    path = append(store, "a")
    record = json.loads(path.read_text())
    del record["seconds"]
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(EvalError, match=r"line 1 is broken .*'seconds' is missing"):
        store.read()


def test_other_settings_are_refused_with_the_difference(store):
    append(store, "a")
    other = PredictionStore(store.folder, {**SETTINGS, "rope_pos_id_stride": 64, "max_num": 5})
    with pytest.raises(
        EvalError, match=r"max_num: saved None, asked 5; rope_pos_id_stride: saved 1, asked 64"
    ) as error:
        other.check()
    assert "--overwrite" in str(error.value)
    assert "checkpoint" not in str(error.value).replace("checkpoints", "")


def test_settings_without_predictions_may_change(store):
    other = PredictionStore(store.folder, {**SETTINGS, "checkpoint": "other"})
    other.check()
    other.prepare()
    assert read_settings(store.folder).settings.values["checkpoint"] == "other"


def test_equal_settings_are_accepted_whatever_the_place(store):
    append(store, "a")
    again = PredictionStore(store.folder, dict(reversed(SETTINGS.items())), {"checkpoint": "/elsewhere"})
    again.check()
    again.prepare()
    assert list(again.read()) == ["a"]


def test_lines_of_other_settings_are_an_error(store):
    append(store, "a")
    other = PredictionStore(store.folder, {**SETTINGS, "checkpoint": "other"})
    with pytest.raises(EvalError, match="other settings"):
        other.read()


def test_overwrite_throws_everything_away(store):
    append(store, "a")
    store.merge([sample("a")])
    other = PredictionStore(store.folder, {**SETTINGS, "checkpoint": "other"})
    other.prepare(overwrite=True)
    assert other.read() == {}
    assert not other.merged_path.exists()


def test_lost_settings_beside_predictions_are_an_error(store):
    append(store, "a")
    (store.folder / "settings.json").unlink()
    with pytest.raises(EvalError, match=r"settings\.json"):
        store.check()


@pytest.mark.parametrize("content", [b"", b'{"id": "a"}'])
def test_a_cut_merged_file_is_an_error(tmp_path, content):
    (tmp_path / "predictions.jsonl").write_bytes(content)
    with pytest.raises(EvalError, match="ends in the middle"):
        read_predictions(tmp_path)


def test_a_full_disk_is_a_clear_error(store):
    writer = PartWriter(Path("/dev/full"), store.fingerprint)
    with pytest.raises(EvalError, match="No space left"):
        writer.append(predict("a"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for 16 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root may mount a disk of its own")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill_up(store, size=300):
    """Ids that were answered before there was no room left."""
    writer, answered = store.open_part(0, 1), []

    def append_for_ever():
        while True:
            writer.append(predict(f"s{len(answered)}", response="x" * size))
            answered.append(f"s{len(answered)}")

    with pytest.raises(EvalError, match=r"cannot write .*jsonl.*what was answered before is kept") as error:
        append_for_ever()
    writer.close()
    return answered, str(error.value)


def test_a_disk_that_fills_up_keeps_what_was_answered(small_disk):
    store = PredictionStore(small_disk / "t", SETTINGS)
    store.prepare()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(4096))
    answered, message = fill_up(store)
    assert "No space left" in message
    assert len(answered) > 3
    assert list(store.read()) == answered
    [part] = (store.folder / "parts").iterdir()
    assert part.read_bytes().endswith(b"\n")
    with pytest.raises(EvalError, match="cannot write"):
        write_result(small_disk / "scores.json", "x" * 16384)
    assert not list(small_disk.glob(".scores*"))
    ballast.unlink()
    store.prepare()
    append(store, "later")
    assert list(store.read()) == [*answered, "later"]


def test_a_line_that_does_not_fit_is_taken_back(store):
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        answered, _ = fill_up(store, size=500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(store.read()) == answered
    append(store, "later")
    assert list(store.read()) == [*answered, "later"]


def test_of_several_lines_the_one_that_did_not_fail_counts(store):
    for rank, response in ((0, None), (1, "blue"), (2, None)):
        writer = store.open_part(rank, 3)
        writer.append(Prediction.failed(sample("a"), "out of memory") if response is None else predict("a", response))
        writer.close()
    assert store.read()["a"] == predict("a")


def test_atomic_writes_leave_the_old_file_when_they_fail(tmp_path):
    path = tmp_path / "scores.json"
    write_result(path, "old")
    with pytest.raises(EvalError, match="cannot write"):
        write_result(path / "below-a-file.json", "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
