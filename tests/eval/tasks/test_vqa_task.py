import json

import pytest

from eval.core.data_root import DataRoot, find_annotation
from eval.tasks.chartqa import summarise
from eval.tasks.registry import find_task, select_tasks, summarise_groups
from internvl.errors import DataError, EvalError

SHORT = "Answer the question using a single word or phrase."


def write_questions(data_root, file, records, folder="data/x"):
    records = [{"image": f"{folder}/{i}.png", "question": f"What {i}?", **r} for i, r in enumerate(records)]
    data_root.write_lines(file, records)
    for record in records:
        data_root.write_image(record["image"].removeprefix("data/"))


def score(scores, protocol="official"):
    return scores["results"][protocol]["score"]


def people(question_id, *answers):
    assert len(answers) == 10
    return {"question_id": question_id, "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers)]}


def test_chartqa_asks_scores_and_averages_both_parts(data_root):
    write_questions(data_root, "chartqa/test_human.jsonl", [{"answer": "12"}, {"answer": ["yes", "Yes."]}])
    write_questions(data_root, "chartqa/test_augmented.jsonl", [{"answer": "100"}])
    first, _ = data_root.read("vqa/chartqa-test-human")
    assert first.prompt == f"<image>\nWhat 0? {SHORT}"
    assert first.images == (data_root.root / "x" / "0.png",)
    task = find_task("vqa/chartqa-test-human")
    assert (task.max_num, task.max_new_tokens) == (12, 100)
    human = data_root.evaluate("vqa/chartqa-test-human", ["11.4", "yes"])
    assert score(human) == 1.0
    assert score(human, "upstream") == 0.5  # 0.6 / 11.4 is above 5 %
    augmented = data_root.evaluate("vqa/chartqa-test-augmented", ["90"])
    assert score(augmented) == 0.0
    means = summarise_groups([human, augmented])["vqa"]["chartqa-test"]
    assert means["official"] == {"score": 0.5, "stderr": 0.0, "count": 3}
    assert means["upstream"] == {"score": 0.25, "stderr": pytest.approx((0.25 / 2) ** 0.5 / 2), "count": 3}
    assert summarise({"chartqa-test-human": human}) == {}


@pytest.mark.parametrize(
    ("name", "folder", "gold_file", "max_num"),
    [
        ("docvqa", "docvqa", "docvqa/val/val_v1.0.json", 18),
        ("infovqa", "infographicsvqa", "infographicsvqa/infographicsVQA_val_v1.0_withQT.json", 24),
    ],
)
def test_documents_take_answers_by_id_and_score_anls(data_root, name, folder, gold_file, max_num):
    write_questions(data_root, f"{folder}/val.jsonl", [{"question_id": 7}, {"question_id": 5}])
    entries = [{"questionId": 5, "question": "q", "answers": ["abcd"]}, {"questionId": 7, "answers": ["x", "Blue"]}]
    data_root.write_json(gold_file, {"dataset_name": "d", "data": entries})
    first, _ = data_root.read(f"vqa/{name}-val")
    assert (first.id, first.prompt) == ("7", f"<image>\nWhat 0? {SHORT}")
    assert find_task(f"vqa/{name}-val").max_num == max_num
    assert find_task(f"vqa/{name}-val").max_new_tokens == 100
    assert score(data_root.evaluate(f"vqa/{name}-val", ["blue", "abxy"])) == pytest.approx((1 + 0.5) / 2)


def test_splits_without_public_answers_leave_an_upload_and_no_score(data_root):
    write_questions(data_root, "docvqa/test.jsonl", [{"question_id": 7}, {"question_id": 9}])
    scores = data_root.evaluate("vqa/docvqa-test", ["é", ""])
    assert score(scores) is None
    assert (scores["results"]["official"]["count"], scores["results"]["official"]["num_empty"]) == (2, 1)
    upload = json.loads((data_root.out / "vqa/docvqa-test/upload.json").read_text())
    assert upload == [{"questionId": 7, "answer": "é"}, {"questionId": 9, "answer": ""}]


def test_vqav2_and_vizwiz_uploads_have_their_own_forms(data_root):
    write_questions(data_root, "vqav2/vqav2_testdev.jsonl", [{"question_id": 262144000}])
    data_root.evaluate("vqa/vqav2-testdev", ["yes"])
    upload = json.loads((data_root.out / "vqa/vqav2-testdev/upload.json").read_text())
    assert upload == [{"question_id": 262144000, "answer": "yes"}]
    write_questions(data_root, "vizwiz/vizwiz_test.jsonl", [{"question_id": "data/vizwiz/test/0.png"}])
    data_root.evaluate("vqa/vizwiz-test", ["unanswerable"])
    upload = json.loads((data_root.out / "vqa/vizwiz-test/upload.json").read_text())
    assert upload == [{"image": "0.png", "answer": "unanswerable"}]


@pytest.mark.parametrize(
    ("name", "file", "gold_file", "official"),
    [
        ("vqa/textvqa-val", "textvqa/textvqa_val.jsonl", "textvqa/textvqa_val_annotations.json", 1.0),
        ("vqa/textvqa-val-ocr", "textvqa/textvqa_val_llava.jsonl", "textvqa/textvqa_val_annotations.json", 1.0),
        ("vqa/vqav2-val", "vqav2/vqav2_val.jsonl", "vqav2/v2_mscoco_val2014_annotations.json", 0.0),
        ("vqa/okvqa-val", "okvqa/okvqa_val.jsonl", "okvqa/mscoco_val2014_annotations.json", 0.0),
        ("vqa/vizwiz-val", "vizwiz/vizwiz_val.jsonl", "vizwiz/vizwiz_val_annotations.json", 0.0),
    ],
)
def test_soft_accuracy_against_ten_people(data_root, name, file, gold_file, official):
    write_questions(data_root, file, [{"question_id": 3}, {"question_id": 4}])
    annotations = [people(4, *["yes"] * 10), people(3, "red", "red", *["blue"] * 8)]
    data_root.write_json(gold_file, {"annotations": annotations})
    first, _ = data_root.read(name)
    lead = "When the provided information is insufficient, respond with 'Unanswerable'. " if "vizwiz" in name else ""
    assert first.prompt == f"<image>\nWhat 0? {lead}{SHORT}"
    assert (find_task(name).max_num, find_task(name).max_new_tokens) == (6, 10)
    scores = data_root.evaluate(name, ["red", "Yes"])  # unanimous people are compared as written, officially
    assert score(scores, "upstream") == pytest.approx((0.6 + 1.0) / 2)
    assert score(scores) == pytest.approx((0.6 + official) / 2)


def test_ai2d_sends_the_question_alone_and_reads_its_options(data_root):
    question = "Which one?\nA. cat\nB. dog\nC. cow\nD. owl\nAnswer with the option's letter."
    write_questions(
        data_root,
        "ai2diagram/test_vlmevalkit.jsonl",
        [{"question": question, "answer": "B", "question_id": "same"}] * 2,
        folder="data/ai2diagram/images",
    )
    first, second = data_root.read("vqa/ai2d-test")
    assert first.prompt == f"<image>\n{question}"
    assert first.id != second.id
    assert first.metadata["chance"] == 0.25
    assert find_task("vqa/ai2d-test").max_new_tokens == 10
    scores = data_root.evaluate("vqa/ai2d-test", ["B", "B. dog"])
    assert (score(scores), score(scores, "upstream")) == (1.0, 0.5)


def test_gqa_scores_by_kind(data_root):
    file = "gqa/llava_gqa_testdev_balanced_qwen_format.jsonl"
    write_questions(data_root, file, [{"question_id": "1"}, {"question_id": "2"}])
    questions = {
        "1": {"answer": "yes", "isBalanced": True, "types": {"structural": "verify"}},
        "2": {"answer": "left", "isBalanced": True, "types": {"structural": "query"}},
    }
    data_root.write_json("gqa/testdev_balanced_questions.json", questions)
    assert data_root.read("vqa/gqa-testdev")[0].prompt == f"<image>\nWhat 0? {SHORT}"
    scores = data_root.evaluate("vqa/gqa-testdev", ["Yes.", "right"])
    assert score(scores) == 0.5
    kinds = scores["results"]["official"]["by_kind"]
    assert (kinds["binary"]["score"], kinds["open"]["score"]) == (1.0, 0.0)


def test_ocrvqa_is_exact(data_root):
    write_questions(data_root, "ocrvqa/ocrvqa_test.jsonl", [{"answer": "John Doe"}, {"answer": ["No"]}])
    assert data_root.read("vqa/ocrvqa-test")[0].prompt == f"<image>\nWhat 0? {SHORT}"
    assert score(data_root.evaluate("vqa/ocrvqa-test", [" john doe", "No."])) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "'answer' is a NoneType"),
        ({"answer": []}, "list of answers is empty"),
        ({"image": None, "answer": "a"}, "'image' is a NoneType"),
        ({"question": "<image> or <image>?", "answer": "a"}, "2 <image> for 1 images"),
    ],
)
def test_wrong_records_name_file_and_row(data_root, change, message):
    good = {"image": "data/x/0.png", "question": "q", "answer": "a"}
    data_root.write_lines("ocrvqa/ocrvqa_val.jsonl", [good, {**good, **change}])
    with pytest.raises(DataError, match=message) as error:
        find_task("vqa/ocrvqa-val").read_samples(data_root.root)
    assert "ocrvqa_val.jsonl, row 1" in str(error.value)


def test_answers_of_another_split_are_named(data_root):
    write_questions(data_root, "okvqa/okvqa_val.jsonl", [{"question_id": 3}])
    data_root.write_json("okvqa/mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(DataError, match="question_id 3 is not in the file of answers"):
        data_root.read("vqa/okvqa-val")
    data_root.write_json("okvqa/mscoco_val2014_annotations.json", {"annotations": [{"question_id": 3}]})
    with pytest.raises(DataError, match=r"'annotations\[0\]\.answers' is missing"):
        data_root.read("vqa/okvqa-val")


def test_missing_files_and_pictures_say_where_they_come_from(data_root):
    task = find_task("vqa/docvqa-val")
    with pytest.raises(EvalError, match=r"val_v1\.0\.json .*get it from https://www\.docvqa\.org"):
        find_annotation(task.more_files[0], DataRoot((data_root.root,)), source=task.source)
    data_root.write_lines("ocrvqa/ocrvqa_val.jsonl", [{"image": "data/x/none.png", "question": "q", "answer": "a"}])
    with pytest.raises(EvalError, match=r"image not found, expected at .*/x/none\.png.*; get it from https://ocr-vqa"):
        data_root.read("vqa/ocrvqa-val")


def test_group_and_patterns_select_sets():
    assert {task.name for task in select_tasks("vqa/docvqa-*")} == {"vqa/docvqa-val", "vqa/docvqa-test"}
    assert len(select_tasks("vqa")) == 18
