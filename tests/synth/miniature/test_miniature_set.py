import json
from dataclasses import asdict, replace

import pytest
from PIL import Image

from internvl.errors import CheckpointError, ConfigError, DataError
from internvl.synth.miniature import __main__ as command
from internvl.synth.miniature import miniature_set
from internvl.synth.miniature.miniature_set import BENCHMARK_FOLDER, build_miniature
from internvl.synth.miniature.training_records import TrainFile
from internvl.synth.model_reader import load_model_reader


def read_files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_layout_is_that_of_v2pe_data_and_mm_niah(dataset, spec):
    for folder in spec.folders:
        assert (dataset / folder / "datasheet.json").is_file()
        assert (dataset / folder / "README.md").is_file()
    names = {path.name for path in (dataset / "annotation" / "long_mr_tiny").iterdir()}
    assert {"train_long_mr_0_2.jsonl", "train_long_mr_0_24.jsonl", "meta.json", "preview.png"} <= names
    assert (dataset / "image" / "long_mr_tiny" / "train").is_dir()
    assert {path.name for path in (dataset / BENCHMARK_FOLDER).iterdir() if path.is_dir()} == {"annotations", "images"}
    assert sorted(path.name for path in dataset.iterdir()) == ["annotation", "benchmark", "image"]


def test_training_and_test_share_no_image_and_no_context(dataset, spec):
    train = {path.read_bytes() for path in (dataset / spec.image_folder).rglob("*.[jp][pn]g")}
    test = {path.read_bytes() for path in (dataset / BENCHMARK_FOLDER).rglob("*.[jp][pn]g")}
    assert len(train) > 50
    assert len(test) > 50
    assert not train & test
    lines = (dataset / spec.annotation_folder / "train_long_mr_0_24.jsonl").read_text().splitlines()
    trained = {json.loads(line)["conversations"][0]["value"].partition("\n")[0] for line in lines}
    items = (dataset / BENCHMARK_FOLDER / "annotations" / "retrieval-text.jsonl").read_text().splitlines()
    assert not trained & {json.loads(item)["context"].strip() for item in items}


def test_datasheet_holds_arguments_and_counts(dataset, spec):
    sheet = json.loads((dataset / BENCHMARK_FOLDER / "datasheet.json").read_text())
    assert sheet["arguments"].items() >= json.loads(json.dumps(asdict(spec))).items()
    assert sheet["counts"]["train"]["train_long_mr_0_24"] == 60
    assert sheet["counts"]["test"]["reasoning-image"] == 20
    images = list((dataset / BENCHMARK_FOLDER / "images").rglob("*.*"))
    assert sheet["counts"]["test"]["images"] == len(images)


def test_preview_shows_something(dataset, spec):
    with Image.open(dataset / spec.annotation_folder / "preview.png") as image:
        assert image.width > 500
        assert len(image.getcolors(maxcolors=10**6)) > 100


def test_same_seed_gives_the_same_files_and_another_seed_others(tmp_path, small_spec, reader):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_miniature(tmp_path / name, replace(small_spec, seed=seed), reader)
    first, again, other = (read_files(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    for name in ("annotation/long_mr_tiny/train_long_mr_0_2.jsonl", f"{BENCHMARK_FOLDER}/images/needle/00000.png"):
        assert first[name] != other[name]


def test_finished_data_is_not_made_again(tmp_path, small_spec, reader, monkeypatch):
    assert build_miniature(tmp_path, small_spec, reader)
    monkeypatch.setattr(miniature_set, "make_pool", None)  # any work would fail
    assert not build_miniature(tmp_path, small_spec, reader)


def test_other_arguments_need_overwrite(tmp_path, small_spec, reader):
    build_miniature(tmp_path, small_spec, reader)
    before = read_files(tmp_path)
    changed = replace(small_spec, seed=1)
    with pytest.raises(DataError, match="--overwrite"):
        build_miniature(tmp_path, changed, reader)
    assert read_files(tmp_path) == before
    assert build_miniature(tmp_path, changed, reader, overwrite=True)
    assert read_files(tmp_path) != before


def test_a_users_benchmark_is_never_touched(tmp_path, small_spec, reader):
    mine = tmp_path / BENCHMARK_FOLDER / "annotations" / "retrieval-text.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("downloaded")
    with pytest.raises(DataError, match="was not made by"):
        build_miniature(tmp_path, small_spec, reader, overwrite=True)
    assert read_files(tmp_path) == {mine.relative_to(tmp_path).as_posix(): b"downloaded"}


def test_failure_leaves_nothing_behind(tmp_path, small_spec, reader, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(miniature_set, "draw_items", fail)
    with pytest.raises(OSError, match="disk full"):
        build_miniature(tmp_path, small_spec, reader)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_move_is_mended_by_the_next_run(tmp_path, small_spec, reader):
    build_miniature(tmp_path, small_spec, reader)
    whole = read_files(tmp_path)
    (tmp_path / small_spec.annotation_folder).rename(tmp_path / "gone")
    assert build_miniature(tmp_path, small_spec, reader)
    mended = {name: data for name, data in read_files(tmp_path).items() if not name.startswith("gone")}
    assert mended == whole


def test_training_and_test_can_be_made_alone(tmp_path, small_spec, reader):
    build_miniature(tmp_path / "train", replace(small_spec, num_items=0), reader)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["annotation", "image"]
    build_miniature(tmp_path / "test", replace(small_spec, train_files=()), reader)
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == ["benchmark"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "name is"),
        ({"base_tiles": 0}, "base_tiles is 0"),
        ({"factors": (1, 0)}, "factors is 0"),
        ({"num_train_needles": 0}, "num_train_needles is 0"),
        ({"num_questions": 0}, "questions_per_sample is 0"),
        ({"length_skew": 0.0}, "length_skew"),
        ({"train_files": (), "num_items": 0}, "nothing to make"),
        ({"num_text_needles": 0}, "num_text_needles"),
        ({"num_train_text_needles": (1, 9)}, "text needles are 1 to 9"),
        ({"num_filler_sentences": (2, 1)}, "filler sentences are 2 to 1"),
        ({"train_files": (TrainFile(0, 2, 1), TrainFile(0, 2, 5))}, "same lengths"),
    ],
)
def test_impossible_arguments_are_clear_errors(small_spec, change, message):
    with pytest.raises(ConfigError, match=message):
        replace(small_spec, **change)


def test_command_line_writes_and_says_when_there_is_nothing_to_do(tmp_path, checkpoint, caplog):
    arguments = (
        f"--out {tmp_path} --tokenizer {checkpoint} --name mini --train 0-2:5 --num_items 0 --num_train_needles 3"
    )
    caplog.set_level("INFO")
    assert command.main(arguments.split()) == 0
    assert "written" in caplog.text
    caplog.clear()
    assert command.main(arguments.split()) == 0
    assert "already there" in caplog.text
    assert (tmp_path / "annotation" / "long_mr_mini" / "meta_0_2.json").is_file()


def test_command_line_reports_user_errors_without_traceback(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), "--tokenizer", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        load_model_reader(tmp_path / "none")


@pytest.mark.parametrize("text", ["0-2", "5-2:10", "0-2:0", "a-b:c"])
def test_wrong_training_file_is_refused_by_the_command_line(text, capsys):
    with pytest.raises(SystemExit):
        command.build_parser().parse_args(["--train", text])
    assert text in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "--length_skew" in capsys.readouterr().out
