"""MMLongBench-Doc, LongDocURL, SlideVQA, DUDE: prompts, pages, scores by rule and after a judge's extraction."""

import json

import pytest

from eval.core.judge import read_verdict
from eval.core.sample import Prediction
from eval.core.scoring import write_scores
from eval.tasks.pages import find_places, list_pages
from eval.tasks.registry import find_task
from internvl.errors import DataError
from tests.eval.published_documents import (
    write_documents,
    write_dude,
    write_longdocurl,
    write_mmlongbench_doc,
    write_slidevqa,
)


def test_pages_stand_before_the_question_in_natural_order(data_root):
    write_mmlongbench_doc(data_root.root)
    first, *_, last = data_root.read("mmlongbench_doc/test")
    assert [path.name for path in first.images] == [f"page-{i}.png" for i in range(1, 13)]
    assert first.prompt == (
        "<image>\n" * 12 + "What is it, 0?\nAnswer with a single word or phrase. If the answer is not in the document, "
        "answer 'Not answerable'."
    )
    assert first.answer == {"text": "5", "format": "Int"}
    assert first.metadata["placed_depth"] == pytest.approx([2 / 11])
    assert (last.metadata["evidence"], last.metadata["sources"]) == (["unanswerable"], [])
    judged = data_root.read("mmlongbench_doc/test-judged")
    assert judged[0].prompt.endswith("<image>\nWhat is it, 0?")
    limits = [find_task(f"mmlongbench_doc/{name}").max_new_tokens for name in ("test", "test-judged")]
    assert limits == [64, 1024]


def test_no_more_than_the_first_pages_are_shown(data_root):
    write_mmlongbench_doc(data_root.root)
    pages = list_pages(data_root.root / "MMLongBench-Doc/pages/report.v2", most=3)
    assert [path.name for path in pages] == ["page-1.png", "page-2.png", "page-3.png"]
    assert list_pages(data_root.root / "missing", most=3) == (data_root.root / "missing/page-1.png",)


def test_short_answers_score_by_rule(data_root):
    write_mmlongbench_doc(data_root.root)
    responses = ["5.0", "0.025", "red cars", "['10%', 'white']", "Not answerable"]
    numbers = data_root.evaluate("mmlongbench_doc/test", responses)["results"]["official"]
    scores = [1, 1, 1 - 1 / 8, 1, 1]
    assert numbers["score"] == pytest.approx(sum(scores) / 5)
    assert numbers["f1"]["score"] == pytest.approx(2 * sum(scores[:4]) / (4 + 4))
    means = {name: mean["score"] for name, mean in numbers["by_evidence"].items()}
    assert means == pytest.approx({"single_page": (3 - 1 / 8) / 3, "cross_page": 1, "unanswerable": 1})
    assert {name: mean["count"] for name, mean in numbers["by_source"].items()} == {
        "Chart": 2, "Table": 1, "Figure": 1, "Pure-text (Plain-text)": 1,
    }  # fmt: skip


@pytest.mark.parametrize("group", ["mmlongbench_doc", "longdocurl"])
def test_a_judge_extracts_what_the_rule_scores(data_root, group):
    write_mmlongbench_doc(data_root.root)
    write_longdocurl(data_root.root)
    task = find_task(f"{group}/test-judged")
    samples = task.read_samples(data_root.root)
    said = "The report counts five of them, so 5."
    prediction = Prediction(samples[0].id, said, samples[0].answer, samples[0].metadata, 1, 1, 0.0, 0.0)
    asked = task.judge.write_prompt(prediction)
    assert asked.endswith(f"Question: What is it, 0?\nText: {said}\n")

    def read(text):
        reply = type("Reply", (), {"text": text})()
        return read_verdict(task.judge, reply, samples[0].answer)

    assert read("Extracted answer: 5\nAnswer format: Integer") == 1
    assert read("Extracted answer: 6\nAnswer format: Integer") == 0
    assert read("It is 5.") is None
    assert (task.judge.version, task.judge.by_rule(samples[0].answer, said)) == (1, 0)


def test_without_a_judge_there_is_no_score(data_root):
    write_mmlongbench_doc(data_root.root)
    scores = data_root.evaluate("mmlongbench_doc/test-judged", ["5"] * 5)["results"]["official"]
    assert scores["score"] is None
    assert scores["needs_judge"] == "mmlongbench-doc-extraction"
    assert scores["by_rule"]["score"] == pytest.approx(1 / 5)


def test_judged_scores_have_no_f1(data_root):
    """The response is not the short answer, so it does not say whether an answer was given."""
    write_mmlongbench_doc(data_root.root)
    task = find_task("mmlongbench_doc/test-judged")
    predictions = [
        Prediction(s.id, "x", s.answer, s.metadata, 1, 1, 0.0, 0.0, verdict=0.5)
        for s in task.read_samples(data_root.root)
    ]
    numbers = write_scores(data_root.out, task, predictions, settings={}, info={}).headline.numbers
    assert numbers["score"] == 0.5
    assert "f1" not in numbers
    assert "by_document_type" in numbers


def test_longdocurl_names_every_page(data_root):
    write_longdocurl(data_root.root)
    sample = data_root.read("longdocurl/test")[1]
    assert sample.prompt == (
        "You are an expert in visual document question-answering, please answer our questions based on the given "
        "images.\nFollowing is our question: \n<question>What is it, 1?</question>\n"
        "Answer the question using a single word or phrase.\n"
        "Below is the 1-th image (total 3 images).\n<image>Below is the 2-th image (total 3 images).\n<image>"
        "Below is the 3-th image (total 3 images).\n<image>"
    )
    assert sample.images[0] == data_root.root / "LongDocURL/pdf_pngs/4000-4999/4055/4055915_41.png"
    assert (sample.metadata["placed_depth"], sample.needles) == ([0, 1], (0, 2))
    numbers = data_root.evaluate("longdocurl/test", ["5", "2.5", "merger", "['c d']", "page one", "no"])
    numbers = numbers["results"]["official"]
    assert numbers["score"] == pytest.approx((1 + 1 + 0 + 0.5 + 0 + 0) / 6)
    assert set(numbers["by_task"]) == {"Reasoning", "Locating"}
    assert numbers["by_evidence"]["single_page"]["count"] == numbers["by_evidence"]["multi_page"]["count"] == 3


def test_slides_are_named_by_the_ends_of_their_addresses(data_root):
    write_slidevqa(data_root.root)
    first = data_root.read("slidevqa/test")[0]
    assert first.images[19] == data_root.root / "SlideVQA/images/test/a-deck/deck-20-1024.jpg"
    assert first.prompt.endswith("how many cars?\nAnswer using only the short answer, without explanation.")
    numbers = data_root.evaluate("slidevqa/test", ["12", "paris or rome", "seven"])["results"]["official"]
    assert numbers["score"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert numbers["exact_match"]["score"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_format": "Number"}, "answer_format is 'Number', expected one of Int, Float"),
        ({"doc_id": "../x.pdf"}, "expected the name of a PDF file"),
        ({"evidence_pages": "[1"}, "is no list"),
    ],
)
def test_wrong_records_are_named(data_root, change, message):
    write_mmlongbench_doc(data_root.root)
    path = data_root.root / "MMLongBench-Doc/samples.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps([records[0], {**records[1], **change}]))
    with pytest.raises(DataError, match=rf"samples\.json, row 1: .*{message}"):
        data_root.read("mmlongbench_doc/test")


def test_the_pages_that_an_answer_needs_are_places_in_its_pictures():
    assert find_places([1, 3, 4, "x", 0], 3) == (0, 2)
    assert find_places([12, 14, 12], 5, first=10) == (2, 4)


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("mmlongbench_doc/test", [[2 / 11], [2 / 11, 1], [1], [0], None]),
        ("longdocurl/test", [[0], [0, 1]] * 3),
        ("slidevqa/test", [[1 / 19], [0, 1], [1]]),
        ("dude/val", [None] * 5),
    ],
)
def test_a_question_has_the_depths_of_all_pages_that_its_answer_needs(data_root, name, depths):
    write_documents(data_root.root)
    found = [sample.metadata.get("placed_depth") for sample in data_root.read(name)]
    assert [entry and pytest.approx(entry) for entry in depths] == found


def change_dude(root, **fields):
    """DUDE with other fields in its row 3, the second question of the validation split."""
    write_dude(root)
    path = root / "DUDE/2023-03-23_DUDE_gt_test_PUBLIC.json"
    content = json.loads(path.read_text())
    content["data"][3] |= fields
    path.write_text(json.dumps(content))


def test_dude_asks_about_all_pages_of_the_validation_split(data_root):
    write_dude(data_root.root)
    samples = data_root.read("dude/val")
    assert [sample.id for sample in samples] == [f"b0_{i}" for i in range(5)]
    assert [path.name for path in samples[0].images] == [f"b0_{page}.jpg" for page in range(12)]
    assert samples[0].prompt == (
        "<image>\n" * 12 + "What is it, 0?\nAnswer briefly, without explanation. Separate several answers by commas. "
        "If the answer is not in the document, answer 'Not answerable'."
    )


def test_dude_scores_texts_lists_and_no_answer(data_root):
    write_dude(data_root.root)
    responses = ["paris", "No", "light blue, red, green", "3", "It is not answerable."]
    numbers = data_root.evaluate("dude/val", responses)["results"]["official"]
    means = {
        "extractive": 1,
        "abstractive": 0,
        "list/extractive": 2 / 3,
        "list/abstractive": 1 / 2,
        "not-answerable": 1,
    }
    assert numbers["score"] == pytest.approx(sum(means.values()) / 5)
    assert {name: mean["score"] for name, mean in numbers["by_answer_type"].items()} == pytest.approx(means)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, "answers is empty, expected an answer, or the answer_type not-answerable"),
        ({"data_split": "dev"}, "expected one of train, val, test"),
        ({"docId": "../b0"}, "leads out"),
    ],
)
def test_wrong_records_of_dude_are_named(data_root, change, message):
    change_dude(data_root.root, **change)
    with pytest.raises(DataError, match=rf"PUBLIC\.json, row 3: .*{message}"):
        data_root.read("dude/val")


def test_the_document_of_dude_without_published_pages_is_left_out(data_root):
    change_dude(data_root.root, docId="5c5a5880e6a73b4be2315d506ab0b15b")
    assert [sample.id for sample in data_root.read("dude/val")] == ["b0_0", "b0_2", "b0_3", "b0_4"]
