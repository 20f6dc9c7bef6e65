"""MMLongBench: prompts, which questions are drawn, gold answers, averages."""

import json

import pytest

from eval.tasks import mmlongbench
from eval.tasks.registry import find_task
from internvl.errors import DataError
from tests.eval.published_documents import write_mmlongbench


@pytest.fixture
def root(tmp_path):
    write_mmlongbench(tmp_path, (8,))
    return tmp_path


def read(root, name):
    return find_task(f"mmlongbench/{name}-8k").read_samples(root)


def test_all_sets_and_lengths_are_tasks():
    assert len(mmlongbench.FAMILY.names) == 19 * 5
    task = find_task("mmlongbench/multi-lexsum-128k")
    assert (task.max_new_tokens, task.max_num) == (384, 4)
    assert task.annotation.as_posix() == "MMLongBench/mmlb_data/summ/lexsum_K128.jsonl"
    assert find_task("mmlongbench/reasoning-text-16k").annotation.name == "reasoning-text_test_K16_dep3.jsonl"


def test_a_question_about_a_picture_stands_behind_the_passages(root):
    sample = read(root, "infoseek")[0]
    head, form, passages, question = sample.prompt.split("\n", 3)
    assert head.endswith("entity shown in the image. Write your answer in the following format:")
    assert (form, passages) == ("Answer: [answer]", "")
    assert question == (
        "Document (Title: Title 0): Text of 0.\n\nDocument (Title: Title 1): Text of 1.\n\n"
        "Document (Title: Title 2): Text of 2.\n\nQuestion: <image>Where is it?"
    )
    assert sample.metadata == {"context_length": 8000, "placed_depth": 0.0, "question": "Where is it?"}


@pytest.mark.parametrize(
    ("name", "ending", "num_images", "answer"),
    [
        ("vh-single", "\n<image>\n<image>\n\nQuestion: Is there a dog?", 4, {"text": "Yes", "default": 0}),
        ("retrieval-text", "words.\n\n<image>\n\nQuestion: What is the secret?", 2, "blue"),
        ("counting-image", "<image>\n\nQuestion: How many <image>?", 3, [2, 1]),
        ("reasoning-image", "Question: What is the secret?\nA. <image>\nB. <image>", 4, 0),
        ("sun397", "Now classify this image: <image>", 7, 1),
        ("gov-report", "Document gao-18-107 (page 0): <image>\n\nNow please summarize the report.", 1,
         "What GAO Found:\nCosts rose.\nDelays grew."),
        ("slidevqa", "Question: Based on Document a_long_document, answer the following question. What is it?", 3,
         {"text": "5", "format": "Integer"}),
    ],
)  # fmt: skip
def test_prompts_of_the_other_kinds(root, name, ending, num_images, answer):
    sample = read(root, name)[0]
    assert sample.prompt.endswith(ending)
    assert (len(sample.images), sample.answer) == (num_images, answer)
    assert sample.metadata["question"]


def test_documents_show_the_first_letters_of_their_names(root):
    assert "\n\nDocument a_long_document: <image>\n\n" in read(root, "mmlongdoc")[0].prompt


def test_the_questions_are_those_that_the_published_code_draws(tmp_path):
    """Checked beside `load_data` of the public code, which draws the same for these files."""
    write_mmlongbench(tmp_path, (8,), num=140)
    rag = read(tmp_path, "viquae")
    assert (len(rag), len({sample.id.partition("-")[0] for sample in rag})) == (200, 100)
    assert [sample.id for sample in rag[:4]] == ["viquae_0-0", "viquae_5-5", "viquae_6-6", "viquae_7-7"]
    needles = read(tmp_path, "counting-text")
    assert (len(needles), [sample.id for sample in needles[:3]]) == (
        50,
        ["counting_0-0", "counting_8-8", "counting_11-11"],
    )
    drawn = {int(sample.id.partition("-")[2]) for sample in read(tmp_path, "longdocurl")}
    assert (len(drawn), [row for row in range(140) if row not in drawn][:6]) == (100, [6, 9, 11, 14, 15, 16])
    labels = [label[0] for label in read(tmp_path, "cars196")[1].prompt.split("label: ")[2:8]]
    assert labels == ["1", "0", "2", "0", "1", "2"]


def test_quoted_names_are_left_out_as_in_the_published_numbers(root):
    assert not any("quoted" in sample.id for sample in read(root, "infoseek"))


def test_a_missing_yes_or_no_is_answered_by_place(tmp_path):
    write_mmlongbench(tmp_path, (8,), num=6)
    assert [sample.answer["default"] for sample in read(tmp_path, "vh-multi")] == [0, 1, 1, 0, 0, 1]


FOOD = ["label: 1", "0", "label: 9"]


@pytest.mark.parametrize(
    ("name", "responses", "score"),
    [
        ("infoseek", ["Paris"] * 3 + ["Answer: the city"] * 2 + ["Rome"], 5 / 6),
        ("counting-text", ["[1, 2]", "0", "3"], 1.0),
        ("retrieval-image", ["A", "B", "no"], 2 / 3),
        ("food101", FOOD, 2 / 3),
        ("gov-report", ["What GAO Found:\nCosts rose.\nDelays grew."] * 3, 1.0),
        ("mmlongdoc", ["5 cars", "250%", "a red car"], 1.0),
    ],
)
def test_scores_by_kind(data_root, name, responses, score):
    write_mmlongbench(data_root.root, (8,))
    results = data_root.evaluate(f"mmlongbench/{name}-8k", responses)["results"]
    assert results["official"]["score"] == pytest.approx(score)
    if name == "infoseek":
        (cells,) = [row for row in results["official"]["by_depth_and_length"]["score_sums"] if any(row)]
        assert cells == [3, 0, 2, 0, 0]


def test_published_means_mirror_yes_and_no(data_root):
    write_mmlongbench(data_root.root, (8,))
    numbers = data_root.evaluate("mmlongbench/vh-single-8k", ["no", "yes", "yes"])["results"]["official"]
    assert numbers["score"] == pytest.approx(1 / 3)
    assert numbers["mirrored_score"] == pytest.approx(2 / 3)


def make_results(length, **scores):
    numbers = {
        name: {"score": scores.get(name.replace("-", "_"), 0.5), "stderr": 0.1, "count": 10}
        for name in mmlongbench.SETS
    }
    numbers["vh-single"]["mirrored_score"] = 0.9
    return {f"{name}-{length}": {"results": {"official": entry}} for name, entry in numbers.items()}


def test_categories_are_means_of_their_sets_and_pairs():
    results = make_results("16k", vh_single=0.1, counting_text=0.1, counting_image=0.3, infoseek=0.7)
    summary = mmlongbench.summarise(results)
    assert list(summary) == ["16k"]
    means = {name: entry["official"]["score"] for name, entry in summary["16k"].items()}
    niah = (0.9 + 0.5 + 0.5 + 0.2 + 0.5) / 5
    assert means == pytest.approx(
        {"VRAG": 0.6, "NIAH": niah, "ICL": 0.5, "Summ": 0.5, "DocVQA": 0.5, "average": (0.6 + niah + 1.5) / 5}
    )
    del results["sun397-16k"]
    assert list(mmlongbench.summarise(results)["16k"]) == ["VRAG", "NIAH", "Summ", "DocVQA"]


@pytest.mark.parametrize(
    ("file", "name", "change", "message"),
    [
        ("vrag/infoseek_K8_dep3.jsonl", "infoseek", {"ctxs": [{"text": "x"}]}, r"'ctxs\[0\].title' is missing"),
        ("NIAH/counting-text_test_K8_dep3.jsonl", "counting-text", {"answer": ["2"]}, "expected a list of counts"),
        ("NIAH/reasoning-image_test_K8_dep6.jsonl", "reasoning-image", {"answer": 2}, "one of choices_image"),
        ("NIAH/retrieval-text_test_K8_dep6.jsonl", "retrieval-text", {"image_list": []}, "2 <image> in context"),
        ("summ/gov_K8.jsonl", "gov-report", {"summary": [{"section_title": "x"}]}, "'summary.paragraphs' is missing"),
        ("summ/gov_K8.jsonl", "gov-report", {"image_list": ["a/1.jpg"]}, "has no number"),
        ("documentQA/mmlongdoc_K8.jsonl", "mmlongdoc", {"answer_format": "Int"}, "expected one of Integer, Float"),
        ("documentQA/mmlongdoc_K8.jsonl", "mmlongdoc", {"answer_format": "List"}, "no JSON list"),
    ],
)
def test_wrong_records_are_named(root, file, name, change, message):
    path = root / "MMLongBench/mmlb_data" / file
    record = {**json.loads(path.read_text().splitlines()[0]), **change}
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=rf"{path.name}, row 0: .*{message}"):
        read(root, name)


@pytest.mark.parametrize("content", ["[]", '{"a": {}}', '{"a": {"exemplar_list": [1], "test_example": []}}', "{}"])
def test_wrong_files_of_classes_are_named(root, content):
    path = root / "MMLongBench/mmlb_data/ICL/cars196_K8.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"cars196_K8\.json"):
        read(root, "cars196")
