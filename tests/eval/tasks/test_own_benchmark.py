"""Benchmarks in YAML: what a file becomes, that it runs as any other, and what a wrong one says."""

import base64
import csv
import json
import shutil
from datetime import date
from pathlib import Path

import pyarrow
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from eval import check_data, score
from eval.core.data_root import find_data_root
from eval.report.__main__ import main as report
from eval.run import chat_server
from eval.run.__main__ import main as run
from eval.run.options import parse_options
from eval.tasks.registry import select_tasks
from eval.tasks.scorers import SCORERS, make_scorer
from eval.tasks.tables import read_rows
from internvl.errors import ConfigError, DataError
from tests.eval.run.chat_server_double import Server, answer

EXAMPLE = Path(__file__).parents[3] / "examples/own_benchmark"
ROWS = [
    {"id": "x1", "image": "a.png", "question": "Which?", "options": ["red", "blue"], "answer": "B", "size": 3},
    {"id": "x2", "image": "a.png", "question": "And {this}?", "options": ["up", "down"], "answer": "up", "size": 20},
]
CONTENT = {"annotation": "rows.jsonl", "prompt": "{question}\n{options}", "scorer": "choice"}


def write_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (28, 28), "red").save(path)


@pytest.fixture
def write(tmp_path):
    """Writes a benchmark with two rows and a picture; keys replace those of `CONTENT`, None leaves one out."""

    def write(rows=ROWS, name="mine", **changes):
        write_picture(tmp_path / "a.png")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {key: value for key, value in {**CONTENT, **changes}.items() if value is not None}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def read(path, prompts="upstream"):
    [task] = select_tasks(str(path), prompts=prompts)
    return task, task.read_samples(find_data_root())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(chat_server, "FIRST_PAUSE_S", 0.0)
    made = Server()
    made.behave = lambda body, number: (200, answer("B"))
    yield made
    made.close()


@pytest.fixture
def evaluate(server, tmp_path):
    return lambda path, *words: run(
        ["--endpoint", server.url, "--model", "tiny", "--tasks", str(path), "--out", str(tmp_path / "out"), *words]
    )


def read_scores(folder, task="own/mine"):
    return json.loads((folder / task / "scores.json").read_text())


def test_the_example_runs_on_a_model_is_continued_and_reported(checkpoint, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    shutil.copytree(EXAMPLE, tmp_path / "bench")
    words = [str(checkpoint), "--tasks", str(tmp_path / "bench/shapes.yaml"), "--out", str(tmp_path / "out")]
    assert check_data.main([words[2]]) == 0
    assert run(words) == 0
    scores = read_scores(tmp_path / "out", "own/shapes")
    official = scores["results"]["official"]
    assert official["count"] == 10
    assert {name: group["count"] for name, group in official["groups"]["shapes"].items()} == {
        "<2": 2, "2-4": 6, "4+": 2,
    }  # fmt: skip
    assert set(official["groups"]["kind"]) == {"colour", "shape", "count"}

    folder = tmp_path / "out/own/shapes"
    (folder / "predictions.jsonl").unlink()
    [part] = (folder / "parts").iterdir()
    part.write_bytes(part.read_bytes()[: part.read_bytes().index(b"\n", 2000) + 20])  # killed in the middle of a line
    answered = part.read_bytes().count(b"\n")
    assert 0 < answered < 10
    assert run(words) == 0
    assert f"10 questions in 1 tasks, {10 - answered} to answer" in caplog.text
    assert read_scores(tmp_path / "out", "own/shapes")["results"] == scores["results"]

    capsys.readouterr()
    assert report([str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    assert "own / shapes / official / kind / colour" in capsys.readouterr().out
    assert "Which colour is the circle?" in (tmp_path / "page.html").read_text()


def test_the_page_shows_the_example():
    page = (EXAMPLE.parents[1] / "docs/your_benchmark.md").read_text()
    shown = page.split("```yaml\n")[1].partition("```")[0]
    assert yaml.safe_load(shown) == yaml.safe_load((EXAMPLE / "shapes.yaml").read_text())
    assert all(f"| `{name}` |" in page for name in SCORERS)


def test_a_row_becomes_a_question(write):
    task, (first, second) = read(write(groups={"size": [10]}))
    assert (task.name, task.max_new_tokens, task.max_num, first.id) == ("own/mine", 64, 12, "x1")
    assert first.prompt == "<image>\nWhich?\nA. red\nB. blue"
    assert second.prompt == "<image>\nAnd {this}?\nA. up\nB. down"  # what a column holds is text
    assert first.images == (task.annotation.parent / "a.png",)
    assert first.answer == {"answer": ["B"], "options": {"A": "red", "B": "blue"}}
    assert first.metadata["chance"] == 0.5


def write_form(path, rows):
    """The rows in the form that a file's ending says; text tables hold lists as JSON."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows([{**row, "options": json.dumps(row["options"])} for row in rows])


@pytest.mark.parametrize("suffix", [".json", ".tsv", ".csv", ".parquet"])
def test_every_form_of_file_gives_the_same_questions(write, tmp_path, suffix):
    _, expected = read(write())
    write_form(tmp_path / f"rows{suffix}", ROWS)
    _, found = read(write(annotation=f"rows{suffix}"))
    assert [(s.id, s.prompt, s.images, s.answer) for s in found] == [
        (s.id, s.prompt, s.images, s.answer) for s in expected
    ]


def test_groups_of_dates_can_be_saved(write, tmp_path):
    write_form(tmp_path / "rows.parquet", [{**row, "day": date(2026, 1, day)} for day, row in enumerate(ROWS, start=1)])
    _, samples = read(write(annotation="rows.parquet", groups=["day"]))
    assert json.loads(json.dumps(samples[1].metadata["row"]))["day"] == "2026-01-02"


def test_pictures_inside_a_file_are_read(write, tmp_path):
    write()
    content = (tmp_path / "a.png").read_bytes()
    rows = [{"image": {"bytes": content, "path": None}, "question": "Which?", "answer": "x"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    _, [sample] = read(write(annotation="rows.parquet", prompt="{question}", scorer="exact"))
    assert sample.images[0].open().size == (28, 28)
    rows = [{"pixels": base64.b64encode(content).decode(), "question": "Which?", "answer": "x"}]
    changes = {"prompt": "{question}", "scorer": "exact", "columns": {"image_base64": "pixels"}}
    _, [sample] = read(write(rows=rows, **changes))
    assert sample.images[0].open().size == (28, 28)
    assert sample.prompt == "<image>\nWhich?"


def test_options_may_have_columns_of_their_own_and_pictures_several(write, tmp_path):
    write_picture(tmp_path / "pics/b.png")
    write_picture(tmp_path / "pics/c.png")
    rows = [
        {"q": "Which?", "p1": "b.png", "p2": ["c.png", "b.png"], "p3": None, "A": "one", "B": "two", "C": "", "gold": 1}
    ]
    columns = {"question": "q", "image": ["p1", "p2", "p3"], "options": ["A", "B", "C"], "answer": "gold"}
    path = write(
        rows=rows, columns=columns, pictures="pics", prompt="See {image} now: {question} {options}",
        scorer={"name": "choice", "answer_is": "index"},
    )  # fmt: skip
    task, [sample] = read(path)
    assert sample.prompt == "See <image>\n<image>\n<image> now: Which? A. one\nB. two"
    assert [image.name for image in sample.images] == ["b.png", "c.png", "b.png"]
    assert task.score_answer(sample.answer, "B", "official") == 1.0


def test_a_video_stands_first(write, tmp_path):
    rows = [{"video": "clip.mp4", "question": "When?", "answer": "now"}]
    task, [sample] = read(write(rows=rows, prompt="{question}", scorer="contains", frames=4))
    assert sample.prompt == "<video>\nWhen?"
    assert (sample.videos[0].path, task.num_frames) == (tmp_path / "clip.mp4", 4)


def test_styles_of_prompts(write, evaluate, tmp_path, capsys):
    path = write(prompt={"plain": "{question}", "careful": "Think. {question}"})
    assert read(path)[1][0].prompt == "<image>\nWhich?"
    assert read(path, prompts="careful")[1][0].prompt == "<image>\nThink. Which?"
    with pytest.raises(ConfigError, match="no prompt style 'carefull', did you mean 'careful'"):
        read(path, prompts="carefull")
    assert evaluate(path, "--prompts", "careful") == 0
    assert evaluate(path) == 2
    assert "prompts: saved 'careful', asked 'plain'" in capsys.readouterr().err
    assert score.main([str(tmp_path / "out")]) == 0


def test_predictions_of_a_changed_file_never_mix(write, evaluate, tmp_path, capsys):
    assert evaluate(write()) == 0
    assert evaluate(write(prompt="{question}\n{options}\nLetter only.")) == 2
    assert "holds predictions made with other settings (benchmark: saved" in capsys.readouterr().err
    assert evaluate(write(rows=[{**ROWS[0], "question": "Who?"}, ROWS[1]])) == 2
    assert "annotation: saved" in capsys.readouterr().err
    assert evaluate(write(max_new_tokens=3)) == 2
    assert "max_new_tokens: saved 64, asked 3" in capsys.readouterr().err


def test_another_scorer_and_other_groups_need_no_answers(write, evaluate, server, tmp_path):
    assert evaluate(write()) == 0
    assert read_scores(tmp_path / "out")["results"]["official"]["score"] == 0.5
    asked = len(server.requests)
    write(scorer={"name": "exact", "ignore_case": False}, groups={"size": [10]})
    assert score.main([str(tmp_path / "out")]) == 0
    official = read_scores(tmp_path / "out")["results"]["official"]
    assert {name: group["score"] for name, group in official["groups"]["size"].items()} == {"<10": 1.0, "10+": 0.0}
    assert evaluate(tmp_path / "mine.yaml") == 0
    assert len(server.requests) == asked


def test_groups_stand_in_the_order_of_their_numbers(write, evaluate, tmp_path):
    rows = [{**ROWS[0], "id": str(size), "size": size, "kind": f"kind {abs(size)}"} for size in (100, -7, 20, 20.5, 9)]
    assert evaluate(write(rows=rows, groups={"size": [-5, 20], "kind": None})) == 0
    groups = read_scores(tmp_path / "out")["results"]["official"]["groups"]
    assert [(name, group["count"]) for name, group in groups["size"].items()] == [("<-5", 1), ("-5-20", 1), ("20+", 3)]
    assert list(groups["kind"]) == ["kind 7", "kind 9", "kind 20", "kind 20.5", "kind 100"]


@pytest.mark.parametrize("size", ["big", "nan", "1e999", "true"])
def test_a_group_of_numbers_needs_numbers(write, size):
    with pytest.raises(DataError, match=f"row 1: column 'size' is '{size}', expected a number"):
        read(write(rows=[ROWS[0], {**ROWS[1], "size": size}], groups={"size": [10]}))


TABLES = {
    "blank lines": ("q,a\n\n1,x\n\n2,y\n  \n\n", 2),
    "a mark and Windows' line ends": ("\ufeffq,a\r\n1,x\r\n2,y\r\n\r\n", 2),
    "line breaks in quotes": ('q,a\n"one\n\nmore",x\n', 1),
    "columns without a name": ("q,a,,\n1,x,,\n", 1),
    "nothing": ("", "the file is empty"),
    "blank lines only": ("\n \n", "the file is empty"),
    "only a header": ("q,a\n\n", "the file holds no rows"),
    "a doubled name": ("q,a,q\n1,x,2\n", "several columns are called 'q'"),
    "a short row": ("q,a\n\n1,x\n2\n", "row 1: 1 cells, expected 2 as in the header"),
    "a long row": ("q,a\n1,x,y\n", "row 0: 3 cells, expected 2 as in the header"),
    "a quote that does not end": ('q,a\n"1,x\n2,y\n', "line 3: unexpected end of data, expected quotes around whole"),
}


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize(("content", "expected"), TABLES.values(), ids=TABLES)
def test_tables_of_text_are_read_as_csv_readers_do(tmp_path, content, expected, delimiter):
    path = tmp_path / ("rows.csv" if delimiter == "," else "rows.tsv")
    path.write_bytes(content.replace(",", delimiter).encode())
    if isinstance(expected, str):
        with pytest.raises(DataError, match=rf"rows\.[ct]sv.*{expected}"):
            read_rows(path)
    else:
        rows = read_rows(path)
        assert (len(rows), {*rows[0]}, rows[0]["a"]) == (expected, {"q", "a"}, "x")


def test_parquet_files_have_no_doubled_columns_and_no_numbers_that_are_none(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    numbers, facts = arrow.array([1.5, float("nan")]), arrow.array([{"k": 1}, {"k": 2}])
    parquet.write_table(arrow.Table.from_arrays([numbers, facts], names=["q", "a"]), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == [{"q": 1.5, "a": {"k": 1}}, {"q": None, "a": {"k": 2}}]
    parquet.write_table(arrow.Table.from_arrays([numbers, facts], names=["q", "q"]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="several columns are called 'q'"):
        read_rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize("answer", ["A", None])
def test_options_end_at_the_letter_z(write, answer):
    row = {**ROWS[0], "answer": answer}
    last = read(write(rows=[{**row, "options": list(range(26))}]))[1][0].prompt.splitlines()[-1]
    assert last == "Z. 25"
    with pytest.raises(DataError, match="row 0: 27 options, expected at most 26"):
        read(write(rows=[{**row, "options": list(range(27))}]))


def test_results_outlive_the_file_that_made_them(write, evaluate, tmp_path):
    path = write(groups=["size"])
    assert evaluate(path) == 0
    before = read_scores(tmp_path / "out")
    path.write_text(yaml.safe_dump({**CONTENT, "prompt": "{question}?", "scorer": "anls"}))
    assert score.main([str(tmp_path / "out")]) == 0
    assert read_scores(tmp_path / "out") == before
    path.write_text(yaml.safe_dump({**CONTENT, "groups": ["size"], "name": "renamed"}))
    assert score.main([str(tmp_path / "out")]) == 0
    assert read_scores(tmp_path / "out") == before
    path.unlink()
    assert score.main([str(tmp_path / "out")]) == 0
    assert read_scores(tmp_path / "out") == before


@pytest.mark.parametrize("content", ["{", "7", "[]", '{"prompt": 3}'])
def test_a_damaged_description_is_named(write, evaluate, tmp_path, capsys, content):
    path = write()
    assert evaluate(path) == 0
    path.unlink()
    file = tmp_path / "out/own/mine/settings.json"
    saved = json.loads(file.read_text())
    saved["info"]["benchmark_content"] = content
    file.write_text(json.dumps(saved))
    assert score.main([str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "own/mine: the description of the benchmark in settings.json is damaged" in error
    assert f"restore {path}" in error


def test_responses_without_public_answers_are_written_for_upload(write, evaluate, tmp_path):
    assert evaluate(write(rows=[{**row, "answer": None} for row in ROWS])) == 0
    assert read_scores(tmp_path / "out")["results"]["official"]["score"] is None
    uploaded = json.loads((tmp_path / "out/own/mine/upload.json").read_text())
    assert uploaded == [{"id": "x1", "response": "B"}, {"id": "x2", "response": "B"}]


def test_files_and_names_may_be_mixed(write):
    one, two = write(), write(name="two")
    assert [task.name for task in select_tasks(f"{one},pope,{two}")] == ["own/mine", "pope/test", "own/two"]
    with pytest.raises(ConfigError, match="second benchmark own/mine"):
        select_tasks(f"{one},{rename(two)}")


def rename(path):
    path.write_text(path.read_text() + "name: mine\n")
    return path


def test_a_missing_picture_is_found_before_a_model_is_asked(write, evaluate, tmp_path, server, capsys):
    path = write(rows=[ROWS[0], {**ROWS[1], "image": "b.png"}])
    assert evaluate(path) == 2
    assert f"sample 'x2': image not found, expected at {tmp_path / 'b.png'}" in capsys.readouterr().err
    assert server.requests == []
    assert check_data.main([str(path)]) == 1


def test_a_judge_scores_by_the_file(write, evaluate, server, tmp_path):
    def behave(body, number):
        said = body["messages"][-1]["content"]
        return 200, answer("blue" if isinstance(said, list) else "Good. Score: 4" if "x1" in said else "Score: 1")

    server.behave = behave
    scorer = {"name": "judge", "prompt": "{id}: {answer}? {response} ({lowest}-{highest})", "lowest": 1, "highest": 5}
    path = write(prompt="{question}", scorer=scorer)
    assert evaluate(path) == 0
    assert read_scores(tmp_path / "out")["results"]["official"]["needs_judge"] == "own-mine"
    assert score.main([str(tmp_path / "out"), "--judge", server.url, "--judge_model", "tiny"]) == 0
    assert read_scores(tmp_path / "out")["results"]["official"]["score"] == 0.375
    assert "x1: B? blue (1-5)" in [body["messages"][-1]["content"] for body in server.requests]


BROKEN = {
    "a key and a scorer that do not exist": (
        {"scorrer": "choice", "scorer": None},
        "mine.yaml: benchmark: unknown key 'scorrer', did you mean 'scorer'?",
    ),
    "a scorer that does not exist": (
        {"scorer": "relaxd"},
        "mine.yaml: unknown scorer 'relaxd', did you mean 'relaxed'?; expected one of exact, anls, relaxed, vqa,",
    ),
    "a column that does not exist": (
        {"prompt": "{questoin}\n{options}"},
        "rows.jsonl: prompt: there is no column 'questoin', did you mean 'question'?; columns: id, image, question,",
    ),
    "a scorer whose name is no text": ({"scorer": {"name": ["anls"]}}, "mine.yaml: unknown scorer \"['anls']\""),
    "an option of a scorer": (
        {"scorer": {"name": "numeric", "tolerance": 1}},
        "mine.yaml: scorer numeric: unknown key 'tolerance'; known: relative, absolute, take",
    ),
    "a value of an option": (
        {"scorer": {"name": "numeric", "take": "lst"}},
        "mine.yaml: the field 'scorer.take' is 'lst', did you mean 'last'?, expected one of first, last",
    ),
    "a value of another type": ({"max_tiles": "6"}, "mine.yaml: the field 'max_tiles' is a str, expected int"),
    "a value out of range": ({"max_tiles": 0}, "mine.yaml: max_tiles is 0, expected 1 or more"),
    "no prompt": ({"prompt": None}, "mine.yaml: the field 'prompt' is missing"),
    "a prompt without a column": ({"prompt": "Why?"}, "mine.yaml: the prompt has no {column}"),
    "a brace alone": ({"prompt": "{question"}, "mine.yaml: prompt: expected '}' before end of string; write {{ and }}"),
    "code in a prompt": ({"prompt": "{question!r}"}, "mine.yaml: prompt: expected the name of a column between braces"),
    "an attribute in a prompt": ({"prompt": "{question.x}"}, "there is no column 'question.x'"),
    "a key of columns": (
        {"columns": {"anwser": "a"}},
        "mine.yaml: columns: unknown key 'anwser', did you mean 'answer'?",
    ),
    "a column named in columns": (
        {"columns": {"id": "ids"}},
        "columns: id: there is no column 'ids', did you mean 'id'?",
    ),
    "edges": ({"groups": {"size": [5, 1]}}, "mine.yaml: groups: size is [5, 1], expected rising numbers"),
    "a group": ({"groups": ["sise"]}, "groups: there is no column 'sise', did you mean 'size'?"),
    "a group whose name is a number": ({"groups": {2020: None}}, "groups: there is no column '2020'"),
    "no options": ({"columns": {"options": "id"}}, "rows.jsonl, row 0: column 'id' holds 1 options"),
    "another file": ({"annotation": "rows.txt"}, "annotation file not found, expected at"),
}


@pytest.mark.parametrize(("changes", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_says_where_and_what(write, evaluate, server, capsys, changes, message):
    assert evaluate(write(**changes)) == 2
    assert message in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer": "C"},
            "rows.jsonl, row 1: column 'answer': 'C' is no letter of an option; options: A (up), B (down)",
        ),
        ({"question": None}, "rows.jsonl, row 1: column 'question' is missing or empty"),
        ({"image": "../a.png"}, "rows.jsonl, row 1: column 'image': '../a.png' leads out of its root"),
        ({"image": 5}, "rows.jsonl, row 1: column 'image' holds a int, expected the path of a picture or video"),
        ({"question": "a <image> and <image>"}, "rows.jsonl, row 1: the question holds 2 <image> for 1 images"),
        ({"size": "big"}, "rows.jsonl, row 1: column 'size' is 'big', expected a number (groups)"),
        ({"id": "x1"}, "id 'x1' is used twice"),
        ({"answer": None}, "1 of 2 questions have no answer, the first is 'x2'"),
    ],
)
def test_a_broken_row_says_where_and_what(write, evaluate, server, capsys, change, message):
    assert evaluate(write(rows=[ROWS[0], {**ROWS[1], **change}], groups={"size": [10]})) == 2
    assert message in capsys.readouterr().err
    assert server.requests == []


def test_a_wrong_file_is_named(tmp_path, capsys, evaluate):
    (tmp_path / "bad.yaml").write_text("annotation: [\n")
    assert evaluate(tmp_path / "bad.yaml") == 2
    assert "bad.yaml is not YAML" in capsys.readouterr().err
    assert evaluate(tmp_path / "none.yaml") == 2
    assert "none.yaml: no such file" in capsys.readouterr().err


GOLD = {"answer": ["12", "twelve"], "options": {"A": "12", "B": "15"}}


@pytest.mark.parametrize(
    ("scorer", "response", "expected"),
    [
        ("exact", " Twelve ", 1),
        ({"name": "exact", "ignore_case": False}, "Twelve", 0),
        ({"name": "exact", "ignore_punctuation": True}, "Twelve.", 1),
        ("anls", "twelv", 1 - 1 / 6),
        ({"name": "anls", "threshold": 0.9}, "twelv", 0),
        ("relaxed", "12.5", 1),
        ({"name": "relaxed", "tolerance": 0.01}, "12.5", 0),
        ("vqa", "twelve", 0.5 * 1 / 3),
        ({"name": "choice", "answer_is": "text"}, "A", 1),
        ("contains", "about 12 apples", 1),
        ({"name": "contains", "need": "all"}, "about 12 apples", 0),
        ("rouge", "twelve", pytest.approx(1)),
        ("numeric", "it is 12", 1),
    ],
)
def test_scorers_by_name(scorer, response, expected):
    gold = GOLD | ({"answer": ["12"]} if "choice" in str(scorer) or scorer == "numeric" else {})
    assert make_scorer(scorer).score(gold, response) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "verdict"), [("Score: -3", 2 / 15), ("**Score:** 10", 1), ("Score: 1. No.\nScore - 0", 1 / 3)]
)
def test_a_judge_may_give_scores_below_zero(reply, verdict):
    rule = make_scorer({"name": "judge", "lowest": -5}).judge
    assert rule.read_verdict(reply, GOLD) == pytest.approx(verdict)


def test_scorers_refuse_answers_that_they_cannot_take():
    with pytest.raises(ValueError, match="'twelve' holds 0 numbers"):
        make_scorer("numeric").score(GOLD, "12")
    with pytest.raises(DataError, match="'7' is no index of an option"):
        make_scorer({"name": "choice", "answer_is": "index"}).score(GOLD | {"answer": ["7"]}, "A")
    with pytest.raises(DataError, match="lowest is 5 and highest 5"):
        make_scorer({"name": "judge", "lowest": 5, "highest": 5})


def test_all_scorers_are_listed_with_their_options(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(["--list_scorers"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(SCORERS)
    assert any(line.split()[:1] == ["tolerance"] for line in lines)


def test_the_folder_of_a_checkpoint_may_come_first(checkpoint):
    assert parse_options([str(checkpoint), "--tasks", "pope"]).checkpoint == checkpoint
