"""Original question files of VQA benchmarks: what comes out can be evaluated."""

import json

import pytest

from eval.convert.vqa import ORIGINALS, convert
from eval.core.media import list_media
from eval.tasks.registry import find_task
from internvl.errors import DataError
from tests.eval.published import write_documents, write_json, write_people

DOCUMENT = {
    "dataset_name": "x",
    "data": [{"questionId": 7, "question": "q", "image": "documents/a.png", "answers": ["1"]}],
}
POSTER = {
    "dataset_name": "x",
    "data": [{"questionId": 7, "question": "q", "image_local_name": "1.jpeg", "answers": ["1"]}],
}
COCO = {"questions": [{"image_id": 42, "question": "q", "question_id": 7}]}
CHARTS = [{"imgname": "1.png", "query": "q", "label": "12"}, {"imgname": "2.png", "query": "q", "label": "13"}]
TEXT = {"data": [{"question_id": 7, "image_id": "ab", "question": "q", "answers": ["red"] * 10}]}
BLIND = [
    {"image": "VizWiz_val_1.jpg", "question": "q", "answers": [{"answer": "red", "answer_confidence": "yes"}] * 10}
]
GQA = {"7": {"imageId": "n1", "question": "q", "answer": "red", "types": {"structural": "query"}}}
SETS = {
    "vqa/docvqa-val": ("docvqa/val/val_v1.0.json", DOCUMENT, "docvqa/val/documents/a.png"),
    "vqa/docvqa-test": ("docvqa/test/test_v1.0.json", DOCUMENT, "docvqa/test/documents/a.png"),
    "vqa/infovqa-val": (
        "infographicsvqa/infographicsVQA_val_v1.0_withQT.json", POSTER, "infographicsvqa/infographicsvqa_images/1.jpeg"
    ),
    "vqa/infovqa-test": (
        "infographicsvqa/infographicsVQA_test_v1.0.json", POSTER, "infographicsvqa/infographicsvqa_images/1.jpeg"
    ),
    "vqa/chartqa-test-human": (
        "chartqa/ChartQA Dataset/test/test_human.json", CHARTS, "chartqa/ChartQA Dataset/test/png/1.png"
    ),
    "vqa/chartqa-test-augmented": (
        "chartqa/ChartQA Dataset/test/test_augmented.json", CHARTS, "chartqa/ChartQA Dataset/test/png/1.png"
    ),
    "vqa/vqav2-val": (
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", COCO, "vqav2/val2014/COCO_val2014_000000000042.jpg"
    ),
    "vqa/vqav2-testdev": (
        "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json", COCO, "vqav2/test2015/COCO_test2015_000000000042.jpg"
    ),
    "vqa/okvqa-val": (
        "okvqa/OpenEnded_mscoco_val2014_questions.json", COCO, "okvqa/val2014/COCO_val2014_000000000042.jpg"
    ),
    "vqa/textvqa-val": ("textvqa/TextVQA_0.5.1_val.json", TEXT, "textvqa/train_images/ab.jpg"),
    "vqa/vizwiz-val": ("vizwiz/annotations/val.json", BLIND, "vizwiz/val/VizWiz_val_1.jpg"),
    "vqa/vizwiz-test": ("vizwiz/annotations/test.json", BLIND, "vizwiz/test/VizWiz_val_1.jpg"),
    "vqa/gqa-testdev": ("gqa/testdev_balanced_questions.json", GQA, "gqa/images/n1.jpg"),
}  # fmt: skip


def test_every_original_is_tried():
    assert {file for file, _, _ in SETS.values()} == {original.file for original in ORIGINALS}


@pytest.mark.parametrize("name", SETS)
def test_an_original_file_becomes_a_task(tmp_path, name):
    file, content, image = SETS[name]
    write_json(tmp_path / file, content)
    for answers in ("vqav2/v2_mscoco_val2014_annotations.json", "okvqa/mscoco_val2014_annotations.json"):
        write_people(tmp_path / answers, [7])
    ((written, count),) = convert(tmp_path, tmp_path).items()
    samples = find_task(name).read_samples(tmp_path)
    assert (tmp_path / written) == tmp_path / find_task(name).annotation
    assert len(samples) == count
    assert [path for _, path in list_media(samples[0])] == [tmp_path / image]
    assert samples[0].metadata["question"].startswith("q ")
    if name not in ("vqa/docvqa-test", "vqa/infovqa-test", "vqa/vqav2-testdev", "vqa/vizwiz-test"):
        assert find_task(name).score_answer(
            samples[0].answer, {"vqa/chartqa": "12"}.get(name[:11], gold(name)), "official"
        )


def gold(name):
    return "1" if "docvqa" in name or "infovqa" in name else "red"


def test_files_that_are_there_are_left_alone(tmp_path):
    write_documents(tmp_path / "docvqa/val/val_v1.0.json", [1])
    (tmp_path / "docvqa/val.jsonl").write_text("mine")
    assert convert(tmp_path, tmp_path) == {}
    assert (tmp_path / "docvqa/val.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [({"data": [{"questionId": 1}]}, "row 0.*no usable field"), ({}, "'data' is missing"), ([1], "published form")],
)
def test_files_of_another_form_are_named_and_leave_nothing(tmp_path, content, message):
    write_json(tmp_path / "docvqa/val/val_v1.0.json", content)
    with pytest.raises(DataError, match=message) as error:
        convert(tmp_path, tmp_path)
    assert "docvqa/val/val_v1.0.json" in str(error.value)
    assert not (tmp_path / "docvqa/val.jsonl").exists()


def test_a_folder_without_originals_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"expected one of\n  docvqa/val/val_v1\.0\.json"):
        convert(tmp_path, tmp_path)


def test_people_are_written_beside_the_questions(tmp_path):
    write_json(tmp_path / "textvqa/TextVQA_0.5.1_val.json", TEXT)
    convert(tmp_path, tmp_path)
    written = json.loads((tmp_path / "textvqa/textvqa_val_annotations.json").read_text())
    assert written["annotations"][0] == {"question_id": 7, "answers": [{"answer": "red"}] * 10}
