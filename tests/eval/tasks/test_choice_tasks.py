"""ScienceQA, POPE, SEED-Bench, MMMU, MMBench and CCBench."""

import base64
import csv
import json
import sys

import pytest

from eval.check_data import check_task
from eval.tasks.registry import find_task
from internvl.errors import DataError

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
CHINESE = "请直接回答选项字母。"


def official(scores):
    return scores["results"]["official"]


def test_scienceqa_puts_the_hint_first(data_root):
    data_root.write_image("scienceqa/images/test/1/image.png")
    record = {
        "image": "data/scienceqa/images/test/1/image.png",
        "question": "Which is it?",
        "hint": "Look closely.",
        "choices": ["cat", "dog"],
        "answer": 1,
    }
    data_root.write_lines("scienceqa/scienceqa_test_img.jsonl", [record, {**record, "hint": ""}])
    first, second = data_root.read("scienceqa/test")
    assert first.prompt == f"<image>\nLook closely.\nWhich is it?\nA. cat\nB. dog\n{LETTER}"
    assert second.prompt == f"<image>\nWhich is it?\nA. cat\nB. dog\n{LETTER}"
    assert first.answer["letter"] == "B"
    scores = data_root.evaluate("scienceqa/test", ["B", "Answer: B"])
    assert official(scores)["score"] == 1.0
    assert scores["results"]["upstream"]["score"] == 0.5  # the first letter is that of an option
    assert official(scores)["chance"] == 0.5


def test_scienceqa_hints_may_be_numbers_or_missing(data_root):
    record = {"image": "1.png", "question": "q", "choices": ["a", "b"], "answer": 0}
    data_root.write_lines("scienceqa/scienceqa_test_img.jsonl", [{**record, "hint": hint} for hint in (7, None)])
    first, second = find_task("scienceqa/test").read_samples(data_root.root)
    assert first.prompt.startswith("<image>\n7\nq\n")
    assert second.prompt.startswith("<image>\nq\n")


@pytest.mark.parametrize("change", [{"answer": 2}, {"answer": -1}, {"choices": []}, {"choices": list("ab") * 14}])
def test_scienceqa_refuses_answers_that_are_no_option(data_root, change):
    record = {"image": "1.png", "question": "q", "hint": "", "choices": ["a", "b"], "answer": 0, **change}
    data_root.write_lines("scienceqa/scienceqa_test_img.jsonl", [record])
    with pytest.raises(DataError, match="row 0"):
        find_task("scienceqa/test").read_samples(data_root.root)


def write_pope(data_root):
    data_root.write_image("pope/val2014/1.png")
    sentence = f"\n{SHORT}"
    questions = [("random", "Is there a cat?"), ("random", "Is there a dog?"), ("popular", "Is there a car?")]
    questions += [("adversarial", "Is there a bus?"), ("adversarial", "Is there a cup?")]
    records = [
        {"question_id": i, "image": "1.png", "text": text + sentence, "category": category}
        for i, (category, text) in enumerate(questions)
    ]
    data_root.write_lines("pope/llava_pope_test.jsonl", records)
    labels = {"random": ["yes", "no"], "popular": ["yes"], "adversarial": ["yes", "no"]}
    for category, values in labels.items():
        texts = [text for kind, text in questions if kind == category]
        rows = [
            {"question_id": i + 1, "image": "1.png", "text": text, "label": label}
            for i, (text, label) in enumerate(zip(texts, values, strict=True))
        ]
        data_root.write_lines(f"pope/coco/coco_pope_{category}.json", rows[::-1])  # order must not matter


@pytest.mark.parametrize(("prompts", "ending"), [("upstream", " "), ("official", "")])
def test_pope_sends_the_text_as_it_is(data_root, prompts, ending):
    write_pope(data_root)
    first = data_root.read("pope/test", prompts=prompts)[0]
    assert first.prompt == f"<image>\nIs there a cat?\n{SHORT}{ending}"
    assert [sample.answer for sample in data_root.read("pope/test")] == ["yes", "no", "yes", "yes", "no"]


def test_pope_score_is_the_mean_of_three_f1(data_root):
    write_pope(data_root)
    numbers = official(data_root.evaluate("pope/test", ["Yes", "Yes", "Yes", "No", "No"]))
    f1 = {category: metrics["f1"] for category, metrics in numbers["by_category"].items()}
    assert f1 == {"random": pytest.approx(2 / 3), "popular": 1.0, "adversarial": 0.0}
    assert numbers["score"] == pytest.approx((2 / 3 + 1) / 3)
    assert numbers["accuracy"] == pytest.approx(3 / 5)
    assert numbers["by_category"]["random"]["f1_stderr"] > 0
    assert numbers["stderr"] == pytest.approx(numbers["by_category"]["random"]["f1_stderr"] / 3)
    assert numbers["accuracy_stderr"] == pytest.approx((0.6 * 0.4 / 5) ** 0.5)


def test_pope_without_a_label_is_refused(data_root):
    write_pope(data_root)
    data_root.write_lines(
        "pope/coco/coco_pope_popular.json", [{"question_id": 9, "image": "2.png", "text": "x", "label": "no"}]
    )
    with pytest.raises(DataError, match=r"no label for 'Is there a car\?' about 1.png in coco_pope_popular"):
        data_root.read("pope/test")


@pytest.mark.parametrize(
    ("change", "message"), [({"category": "x"}, "expected one of random"), ({"text": 1}, "'text'")]
)
def test_pope_refuses_wrong_records(data_root, change, message):
    write_pope(data_root)
    record = {"question_id": 1, "image": "1.png", "text": "q", "category": "random"}
    data_root.write_lines("pope/llava_pope_test.jsonl", [{**record, **change}])
    with pytest.raises(DataError, match=message):
        data_root.read("pope/test")


def test_seed_takes_letters_and_types_from_the_annotation(data_root):
    data_root.write_image("SEED/SEED-Bench-image/1.png")
    text = f"What?\nA. a\nB. b\nC. c\nD. d\n{LETTER}"
    records = [{"question_id": i, "image": "SEED-Bench-image/1.png", "text": text, "answer": "A"} for i in (5, 6)]
    data_root.write_lines("SEED/seed.jsonl", records)
    questions = [{"question_id": str(i), "answer": "C", "question_type_id": i - 4} for i in (5, 6, 7)]
    data_root.write_json("SEED/SEED-Bench.json", {"question_type": {}, "questions": questions})
    assert data_root.read("seed/image")[0].prompt == f"<image>\n{text}"
    scores = data_root.evaluate("seed/image", ["C. c", " c"])
    assert official(scores)["score"] == 1.0
    assert scores["results"]["upstream"]["score"] == 0.5
    right = {"score": 1.0, "stderr": 0.0, "count": 1}
    assert official(scores)["by_type"] == {"1": right, "2": right}
    assert official(scores)["image"] == official(scores)["total"] == right | {"count": 2}


def test_seed_scores_by_its_own_answers_where_the_annotation_is_not_there(data_root):
    data_root.write_image("SEED/SEED-Bench-image/1.png")
    record = {"image": "SEED-Bench-image/1.png", "text": "What?", "answer": "C"}
    kinds = ("Scene", "Scene", "Identity")
    records = [{**record, "question_id": i, "category": kind} for i, kind in enumerate(kinds)]
    data_root.write_lines("SEED/seed.jsonl", records)
    assert check_task(find_task("seed/image"), data_root.root).is_complete
    numbers = official(data_root.evaluate("seed/image", ["C", "B", "C"]))
    assert numbers["score"] == pytest.approx(2 / 3)
    assert {kind: entry["score"] for kind, entry in numbers["by_category"].items()} == {"Identity": 1.0, "Scene": 0.5}


def test_seed_without_any_answers_has_no_score(data_root):
    data_root.write_image("SEED/SEED-Bench-image/1.png")
    record = {"question_id": 1, "image": "SEED-Bench-image/1.png", "text": "What?"}
    data_root.write_lines("SEED/seed.jsonl", [record])
    assert official(data_root.evaluate("seed/image", ["C"]))["score"] is None


def write_mmmu(data_root, split="validation", **change):
    for name in ("1.png", "2.png"):
        data_root.write_image(f"MMMU/images/{name}")
    choice = {
        "id": f"{split}_Public_Health_1",
        "question": " Compare <image 1> and <image 2>. ",
        "options": "['one', \"it's <image 2>\"]",
        "answer": "B",
        "question_type": "multiple-choice",
        "image_1": "images/1.png",
        "image_2": "images/2.png",
        "image_3": None,
    }
    open_ = {
        **choice,
        "id": f"{split}_Math_2",
        "question": "How many?",
        "options": "[]",
        "answer": "['1.5', '3/2']",
        "question_type": "open",
        "image_2": None,
    }
    data_root.write_lines(f"MMMU/{split}.jsonl", [{**choice, **change}, open_])


def test_mmmu_names_every_picture_before_the_question(data_root):
    write_mmmu(data_root)
    first, second = data_root.read("mmmu/val")
    question = f"Compare <image 1> and <image 2>.\nA. one\nB. it's <image 2>\n{LETTER}"
    assert first.prompt == f"The <image 1> is <image>, The <image 2> is <image>\n{question}"
    assert second.prompt == f"The <image 1> is <image>\nHow many?\n{SHORT}"
    doubled, other = first.images
    assert (doubled.path.name, doubled.open().size, other.name) == ("1.png", (40, 60), "2.png")
    assert (first.tile_limits, second.tile_limits) == ((None, 1), (None,))
    assert first.joined_prompt == f"<image>\n{question}"  # the public code's with ordinary positions
    assert data_root.read("mmmu/val", prompts="official")[0].joined_prompt is None
    assert data_root.read("mmmu/val", prompts="official")[0].images == (doubled.path, other)
    assert data_root.read("mmmu/val", prompts="official")[0].prompt == f"<image><image>\n{question}"
    assert find_task("mmmu/val").max_new_tokens == 10


def test_mmmu_scores_letters_and_open_answers_by_subject(data_root):
    write_mmmu(data_root)
    scores = data_root.evaluate("mmmu/val", ["(B)", "The answer is 1.50"])
    assert official(scores)["score"] == 1.0
    assert scores["results"]["upstream"]["score"] == 0.5  # `(B)` is no letter there
    table = official(scores)["by_subject"]
    assert table["Public_Health"] == {"num": 1, "acc": 1.0, "stderr": 0.0}
    assert table["Overall"] == {"num": 2, "acc": 1.0, "stderr": 0.0}
    halves = scores["results"]["upstream"]["by_subject"]["Overall"]
    assert halves == {"num": 2, "acc": 0.5, "stderr": pytest.approx((0.25 / 2) ** 0.5)}


def test_mmmu_test_leaves_an_upload(data_root):
    write_mmmu(data_root, split="test", answer="?")
    lines = (data_root.root / "MMMU/test.jsonl").read_text().replace("\"['1.5', '3/2']\"", '"?"')
    (data_root.root / "MMMU/test.jsonl").write_text(lines)
    scores = data_root.evaluate("mmmu/test", ["(B)", "1.5"])
    assert official(scores)["score"] is None
    upload = json.loads((data_root.out / "mmmu/test/upload.json").read_text())
    assert upload == {"test_Public_Health_1": "B", "test_Math_2": "1.5"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": "__import__('os')"}, "'options' is not a list"),
        ({"options": "[]"}, "question_type is 'multiple-choice' with 0 options"),
        ({"answer": "C"}, "the answer is 'C', expected one of A, B"),
        ({"answer": ["B"]}, r"the answer is \['B'\], expected one of A, B"),
        ({"image_1": None, "image_2": None}, "no image_1"),
    ],
)
def test_mmmu_refuses_wrong_records(data_root, change, message):
    write_mmmu(data_root, **change)
    with pytest.raises(DataError, match=message):
        data_root.read("mmmu/val")


def make_row(data_root, index, answer, **fields):
    data_root.write_image("picture.png")
    content = base64.b64encode((data_root.root / "picture.png").read_bytes()).decode()
    row = {
        "index": index,
        "question": "Which?\nReally?",
        "hint": "nan",
        "A": "cat",
        "B": 'a "dog"',
        "C": "",
        "D": "nan",
    }
    return {**row, "answer": answer, "category": "animals", "l2-category": "nature", "image": content, **fields}


@pytest.mark.parametrize(
    ("name", "file", "sentence"),
    [
        ("mmbench/dev-en", "mmbench_dev_20230712.tsv", LETTER),
        ("mmbench/dev-cn", "mmbench_dev_cn_20231003.tsv", CHINESE),
        ("ccbench/dev", "CCBench_legacy.tsv", CHINESE),
    ],
)
def test_mmbench_reads_options_hint_and_packed_pictures(data_root, name, file, sentence):
    rows = [make_row(data_root, 1, "A", hint="See."), make_row(data_root, 2, "B", image="1")]
    data_root.write_table(f"mmbench/{file}", rows)
    first, second = data_root.read(name)
    assert first.prompt == f'<image>\nSee.\nWhich?\nReally?\nA. cat\nB. a "dog"\n{sentence}'
    assert second.prompt == f'<image>\nWhich?\nReally?\nA. cat\nB. a "dog"\n{sentence}'
    assert first.images[0].open().size == second.images[0].open().size == (20, 30)
    assert (first.id, first.answer["letter"], first.metadata["chance"]) == ("1", "A", 0.5)


def test_mmbench_counts_a_question_only_if_every_rotation_is_right(data_root):
    rows = [make_row(data_root, index, "A", category=f"c{index % 10}") for index in (1, 2, 1_000_001, 1_000_002)]
    data_root.write_table("mmbench/mmbench_dev_20230712.tsv", rows)
    numbers = official(data_root.evaluate("mmbench/dev-en", ["A", "A", "A", "B"]))
    assert (numbers["score"], numbers["vanilla_accuracy"], numbers["num_questions"]) == (0.5, 0.75, 2)
    assert {name: entry["score"] for name, entry in numbers["by_category"].items()} == {"c1": 1.0, "c2": 0.0}
    assert numbers["stderr"] == pytest.approx((0.25 / 2) ** 0.5)


def test_mmbench_test_leaves_a_table_with_predictions(data_root):
    rows = [make_row(data_root, 7, "")]
    del rows[0]["answer"]
    data_root.write_table("mmbench/mmbench_test_en_20231003.tsv", rows)
    assert official(data_root.evaluate("mmbench/test-en", ["B."]))["score"] is None
    with (data_root.out / "mmbench/test-en/upload.tsv").open(newline="") as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert (row["index"], row["B"], row["prediction"]) == ("7", 'a "dog"', "B")


def test_mmbench_test_leaves_a_workbook_too(data_root):
    openpyxl = pytest.importorskip("openpyxl")
    rows = [make_row(data_root, 7, "", question="=1+1\x07?", A="#N/A")]
    del rows[0]["answer"]
    data_root.write_table("mmbench/mmbench_test_en_20231003.tsv", rows)
    data_root.evaluate("mmbench/test-en", ["B."])
    sheet = openpyxl.load_workbook(data_root.out / "mmbench/test-en/upload.xlsx").active
    header, row = sheet.iter_rows()
    assert [cell.value for cell in header] == ["index", "question", *"ABCDE", "prediction"]
    assert [cell.value for cell in row] == [7, "=1+1?", "#N/A", 'a "dog"', None, None, None, "B"]
    assert [cell.data_type for cell in row[:4]] == ["n", "s", "s", "s"]


def test_without_openpyxl_the_table_is_written_and_the_workbook_named(data_root, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    rows = [make_row(data_root, 7, "")]
    del rows[0]["answer"]
    data_root.write_table("mmbench/mmbench_test_cn_20231003.tsv", rows)
    data_root.evaluate("mmbench/test-cn", ["B."])
    assert (data_root.out / "mmbench/test-cn/upload.tsv").is_file()
    assert not (data_root.out / "mmbench/test-cn/upload.xlsx").exists()
    assert "upload.xlsx is not written: Excel files need openpyxl: pip install 'openpyxl>=3.1,<4'" in caplog.text


def test_mmbench_takes_cells_above_the_limit_of_the_csv_module(data_root):
    limit = csv.field_size_limit()
    row = make_row(data_root, 1, "A", question="long " * 40_000)
    data_root.write_table("mmbench/mmbench_dev_20230712.tsv", [row])
    assert len(data_root.read("mmbench/dev-en")[0].prompt) > 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "C"}, "the answer is 'C'"),
        ({"image": ""}, "no image"),
        ({"question": ""}, "'question' is missing"),
        ({"index": "2.0"}, "the index is '2.0', expected a whole number"),
    ],
)
def test_mmbench_refuses_wrong_rows(data_root, change, message):
    rows = [make_row(data_root, 1, "A"), make_row(data_root, 2, "A") | change]
    data_root.write_table("mmbench/mmbench_dev_20230712.tsv", rows)
    with pytest.raises(DataError, match=message) as error:
        data_root.read("mmbench/dev-en")
    assert "row 1" in str(error.value)


def test_a_packed_picture_that_is_none_names_its_place(data_root):
    data_root.write_table("mmbench/mmbench_dev_20230712.tsv", [make_row(data_root, 1, "A", image="QUJD" * 30)])
    with pytest.raises(DataError, match=r"mmbench_dev_20230712\.tsv, index 1"):
        data_root.read("mmbench/dev-en")[0].images[0].open()
