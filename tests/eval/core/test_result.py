"""The three files of a result, whole and damaged in every way that a disk, an editor or a person can damage them."""

import copy
import json

import pytest

from eval.core.result import find_results, read_predictions, read_result, read_settings
from eval.core.sample import Prediction
from eval.core.scoring import write_scores
from eval.report.__main__ import main as report
from eval.score import main as score
from eval.tasks.registry import find_task
from internvl.errors import EvalError

TASK = "mm_niah/reasoning-image-test"
WRONG_VALUES = (None, True, -1, 0.5, "text", [], [1], {}, {"a": 1})


@pytest.fixture
def folder(benchmark_root, record, saved_runs, tmp_path):
    """A scored task with lengths, depths and baselines."""
    benchmark_root.write(
        "reasoning-image", [record(i, answer=i % 2, num_images=2, choices=["up", "down"]) for i in range(8)]
    )
    folder = saved_runs.write(tmp_path / "run", TASK, ["A"] * 8, data_root=benchmark_root.root)
    saved = read_settings(folder)
    predictions = read_predictions(folder)
    options = {"settings": saved.settings.values, "info": saved.info, "length_edges": (100, 200, 400)}
    write_scores(folder, find_task(TASK), predictions, **options)
    return folder


READERS = {
    "scores.json": lambda folder: read_result(folder / "scores.json"),
    "settings.json": read_settings,
    "predictions.jsonl": read_predictions,
}


def damage_everywhere(content, path=()):
    """(where, content with one field removed, or one value replaced by one of another type) for every place in it."""
    node = content
    for key in path:
        node = node[key]
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        for value in ("removed", *WRONG_VALUES):
            changed = copy.deepcopy(content)
            parent = changed
            for step in path:
                parent = parent[step]
            if value == "removed":
                del parent[key]
            else:
                parent[key] = value
            yield (*path, key), changed
        yield from damage_everywhere(content, (*path, key))


def test_files_become_records(folder):
    result = read_result(folder / "scores.json")
    assert (result.task, result.protocol, result.folder) == (TASK, "official", folder)
    assert result.run_folder == folder.parents[1]
    assert (result.headline.score, result.headline.estimate.count) == (0.5, 8)
    assert [(entry.low, entry.high, entry.count) for entry in result.headline.by_length] == [
        (100, 200, 2), (200, 400, 4), (400, None, 2),
    ]  # fmt: skip
    assert sum(map(sum, result.headline.by_depth_and_length.counts)) == 8
    assert result.headline.baselines.letter.score == 0.5
    assert result.settings.rope_pos_id_stride == 64
    saved = read_settings(folder)
    assert (saved.settings.task, saved.info["checkpoint"]) == (TASK, "/models/tiny")
    assert saved.settings == result.settings
    assert read_predictions(folder)[3].response == "A"


def test_a_prediction_comes_back_as_it_was(tmp_path):
    prediction = Prediction("a", "ü \n", {"letter": "B"}, {"depth": [0.5], "nan": float("inf")}, 9, 2, 7.25, 0.5, None)
    (tmp_path / "predictions.jsonl").write_text(json.dumps(prediction.to_record()) + "\n")
    assert read_predictions(tmp_path) == [prediction]


@pytest.mark.parametrize("name", ["scores.json", "settings.json", "predictions.jsonl"])
def test_a_wrong_field_is_an_error_with_the_file_or_does_no_harm(folder, name):
    path = folder / name
    text = path.read_text().splitlines()[0] if name.endswith("l") else path.read_text()
    refused = []
    for place, content in damage_everywhere(json.loads(text)):
        path.write_text(json.dumps(content) + "\n")
        try:
            READERS[name](folder)
        except EvalError as error:
            refused.append((place[-1], str(error)))
    expected = {
        "scores.json": {"task", "results", "official", "score", "count", "low", "by_length", "score_sums", "letters"},
        "settings.json": {"settings", "fingerprint", "rope_pos_id_version", "rope_pos_id_stride", "checkpoint"},
        "predictions.jsonl": {"id", "response", "answer", "metadata", "seconds", "failure", "num_tiles"},
    }
    assert all(str(path) in message for _, message in refused)
    assert {field for field, _ in refused} >= expected[name]


@pytest.mark.parametrize("name", ["scores.json", "settings.json", "predictions.jsonl"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2 - 9],
        lambda content: b"\xff\xfe" + content,
        lambda content: content.replace(b"mm_niah", b"mm\xffniah").replace(b"response", b"re\xffsponse"),
        lambda content: b"[]\n",
        lambda content: b"null\n",
        lambda content: b"[" * 100_000 + b"\n",
        lambda content: b"<html></html>\n",
    ],
)
def test_a_file_that_is_something_else_is_named(folder, name, damage):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EvalError, match=name):
        READERS[name](folder)


def test_errors_say_which_field_is_wrong(folder):
    path = folder / "scores.json"
    content = json.loads(path.read_text())
    content["results"]["upstream"]["by_length"][1]["count"] = "many"
    path.write_text(json.dumps(content))
    message = r"scores\.json is broken .*results\.upstream.*by_length\[1\]\.count' is a str, expected int.*eval\.score"
    with pytest.raises(EvalError, match=message):
        find_results([folder])


@pytest.mark.parametrize("name", ["scores.json", "settings.json", "predictions.jsonl"])
def test_commands_end_without_a_traceback(folder, name, capsys, tmp_path):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-40])
    codes = score([str(tmp_path / "run")]), report([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")])
    # Scores are made again from predictions; a page needs scores alone, and leaves broken questions out.
    assert codes == {"scores.json": (0, 0), "settings.json": (2, 0), "predictions.jsonl": (2, 0)}[name]
    assert all(line.startswith("error: ") and name in line for line in capsys.readouterr().err.splitlines())
    path.write_bytes(b"{")
    assert report([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == (2 if name == "scores.json" else 0)
