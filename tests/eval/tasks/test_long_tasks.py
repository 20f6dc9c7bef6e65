"""MileBench and Long-VQA."""

import pytest

from eval.metrics.milebench import SETS
from eval.tasks import longvqa, milebench
from eval.tasks.registry import find_task, select_tasks, summarise_groups
from internvl.errors import DataError

LETTER = "Answer with the option's letter from the given choices directly."


def official(scores):
    return scores["results"]["official"]


def write_set(data_root, name, instances, *, question_type="multi-choice", instructions=("Look.", "Find."), file=None):
    for i in range(1, 4):
        data_root.write_image(f"MileBench/{name}/images/d/{i}.png")
    data = [
        {
            "sample_id": i,
            "task_instruction_id": i % 2,
            "task_instance": {"context": "q", "images_path": ["d/1.png"], **instance},
            "response": instance.pop("response", "cat"),
            "image_quantity_level": "Few",
        }
        for i, instance in enumerate(map(dict, instances))
    ]
    meta = {"dataset": name, "question_type": question_type, "task_instruction": instructions}
    data_root.write_json(f"MileBench/{name}/{file or name}.json", {"meta_data": meta, "data": data})


@pytest.mark.parametrize(("prompts", "ending"), [("upstream", f"\n{LETTER}"), ("official", "\nYour answer is: ")])
def test_milebench_marks_become_images_and_choices_follow(data_root, prompts, ending):
    instance = {
        "context": "First {image#1} then {table#2}. Which?",
        "images_path": ["d/3.png", "d/1.png"],
        "choice_list": ["dog", "cat"],
    }
    write_set(data_root, "TQA", [instance])
    (sample,) = data_root.read("milebench/TQA", prompts=prompts)
    assert sample.prompt == (f"Look.\nFirst <image> then <image>. Which?\nChoice list: \nA. dog\nB. cat{ending}")
    assert [path.name for path in sample.images] == ["3.png", "1.png"]
    assert sample.metadata["chance"] == 0.5
    task = find_task("milebench/TQA", prompts=prompts)
    assert (task.max_num, task.max_new_tokens) == (1, 32 if prompts == "upstream" else 512)


def test_milebench_open_questions_have_no_ending_and_score_rouge(data_root):
    instances = [{"context": "{image#1} Say.", "response": "a red car"}, {"context": "{image#1} Say.", "response": "x"}]
    write_set(data_root, "ALFRED", instances, question_type="open-ended", instructions={"0": "Look.", "1": "Find."})
    first, second = data_root.read("milebench/ALFRED")
    assert (first.prompt, second.prompt) == ("Look.\n<image> Say.", "Find.\n<image> Say.")
    scores = data_root.evaluate("milebench/ALFRED", ["a red car", ""])
    assert official(scores)["score"] == pytest.approx(0.5, abs=1e-6)


def test_milebench_gpr1200_lists_choices_without_letters(data_root):
    write_set(data_root, "GPR1200", [{"choice_list": ["dog", "cat"], "context": "{image#1}"}])
    assert data_root.read("milebench/GPR1200")[0].prompt == (f"Look.\n<image>\nChoice list: \ndog\ncat\n{LETTER}")


def test_milebench_letters_run_on_behind_z(data_root):
    write_set(data_root, "TQA", [{"choice_list": [f"o{i}" for i in range(27)], "response": "o3"}])
    assert "\nZ. o25\n[. o26\n" in data_root.read("milebench/TQA")[0].prompt


@pytest.mark.parametrize("prompts", ["upstream", "official"])
@pytest.mark.parametrize(
    ("context", "num_images", "prompt", "shown"),
    [
        ("no mark", 1, "Look.\n<image>no mark", ["1.png"]),
        ("one {image#1} mark", 2, "Look.\n<image>one <image> mark", ["1.png", "2.png"]),
        ("one {image#1} mark", 3, "Look.\n<image>one <image> mark", ["2.png", "3.png"]),
        ("{image#1} and {table#2}", 2, "Look.\n<image> and <image>", ["1.png", "2.png"]),
        ("no picture", 0, "Look.\nno picture", []),
    ],
)
def test_milebench_shows_one_picture_without_a_mark_behind_the_instruction(
    data_root, context, num_images, prompt, shown, prompts
):
    """As both public codes do; they attach pictures from the last to the first."""
    names = [f"d/{number}.png" for number in range(1, num_images + 1)]
    write_set(data_root, "TextNeedleInAHaystack", [{"context": context, "images_path": names}])
    (sample,) = data_root.read("milebench/TextNeedleInAHaystack", prompts=prompts)
    assert (sample.prompt, [path.name for path in sample.images]) == (prompt, shown)
    assert sample.metadata["num_images"] == num_images


def test_milebench_marks_in_the_instruction_stay_text(data_root):
    write_set(
        data_root, "TQA", [{"context": "{image#1}?"}], instructions=["See {image#1}."], question_type="open-ended"
    )
    assert data_root.read("milebench/TQA")[0].prompt == "See {image#1}.\n<image>?"


def test_milebench_needles_are_words(data_root):
    write_set(data_root, "ImageNeedleInAHaystack", [{"response": "X7"}, {"response": "X7"}])
    scores = data_root.evaluate("milebench/ImageNeedleInAHaystack", ["It is x7.", "x77"])
    assert official(scores)["score"] == 0.5


def test_milebench_scores_choices_by_level_and_honestly(data_root):
    instances = [
        {"choice_list": ["a1", "b2", "cat"], "images_path": ["d/1.png"] * number, "response": "cat"}
        for number in (1, 6, 32)
    ]
    write_set(data_root, "TQA", instances)
    numbers = official(data_root.evaluate("milebench/TQA", ["C", "", "A"]))
    assert numbers["score"] == pytest.approx(2 / 3)  # officially an empty answer is C
    assert numbers["robust"]["score"] == pytest.approx(1 / 3)
    assert numbers["robust"]["stderr"] == pytest.approx((2 / 9 / 3) ** 0.5)
    assert numbers["by_level"] == {
        level: {"score": score, "stderr": 0.0, "count": 1} for level, score in (("Few", 1), ("Medium", 1), ("Many", 0))
    }


@pytest.mark.parametrize(
    ("num_canvases", "file", "listed", "expected"),
    [
        (1, "TQA", {"combined_1_images": ["0-0.jpg"]}, ["0-0.jpg"]),
        (1, "TQA", {}, ["0-0.jpg"]),  # the name that the benchmark's own script gives it
        (2, "TQA_combined_2", {"combined_2_images": ["0-0.jpg", "x.jpg"]}, ["0-0.jpg", "x.jpg"]),
    ],
)
def test_milebench_canvases_are_read_as_published(data_root, num_canvases, file, listed, expected):
    instance = {
        "context": "{image#2} and {image#1}?",
        "images_path": ["d/1.png", "d/2.png"],
        "choice_list": ["cat", "dog"],
        **listed,
    }
    write_set(data_root, "TQA", [instance], file=file)
    for name in expected:
        data_root.write_image(f"MileBench/TQA/combined_{num_canvases}_images/{name}")
    (sample,) = data_root.read(f"milebench/TQA-combined-{num_canvases}")
    question = f"Look.\n<Image 2>  and <Image 1> ?\nChoice list: \nA. cat\nB. dog\n{LETTER}"
    assert sample.prompt == "<image>\n" * num_canvases + question
    folder = data_root.root / f"MileBench/TQA/combined_{num_canvases}_images"
    assert sample.images == tuple(folder / name for name in expected)
    assert sample.metadata["num_images"] == 2


@pytest.mark.parametrize("name", ["TQA-combined-0", "TQA-combined-", "TQA-combined-1x", "Nothing-combined-1"])
def test_milebench_has_no_other_combined_tasks(name):
    assert milebench.make_task(name, "upstream") is None


@pytest.mark.parametrize(
    ("instance", "options", "message"),
    [
        ({"context": "{image#1}{image#2}"}, {}, "places 2 pictures, images_path has 1"),
        ({"choice_list": ["dog"]}, {}, "not among the 1 choices"),
        ({}, {"instructions": []}, "no entry 0"),
        ({}, {"instructions": 5}, "'meta_data.task_instruction' is a int"),
        ({"choice_list": "dog"}, {}, "'task_instance.choice_list' is a str"),
        ({"response": []}, {}, "list of responses is empty"),
        ({}, {"question_type": "closed"}, "question type of TQA is 'closed'"),
    ],
)
def test_milebench_refuses_wrong_records(data_root, instance, options, message):
    write_set(data_root, "TQA", [instance], **options)
    with pytest.raises(DataError, match=message):
        data_root.read("milebench/TQA")


def test_milebench_averages_by_set_and_by_task():
    def result(name, score):
        numbers = {"score": score, "stderr": 0.1, "count": 10}
        return {"task": f"milebench/{name}", "results": dict.fromkeys(("official", "upstream"), numbers)}

    action = ("ActionLocalization", "ActionPrediction", "ActionSequence")
    results = [result(name, 1.0 if name in (*action, "nuscenes", "GPR1200") else 0.0) for name in SETS]
    table = summarise_groups(results)["milebench"]["separate"]["official"]
    assert {name: entry["score"] for name, entry in table["by_set"].items()} == {
        "T": pytest.approx(3 / 13), "S": pytest.approx(1 / 13), "NI": pytest.approx(1 / 3),
        "average": pytest.approx((3 / 13 + 1 / 13 + 1 / 3) / 3),
    }  # fmt: skip
    assert table["by_set"]["T"]["stderr"] == pytest.approx(0.1 / 13**0.5)
    assert table["by_set"]["average"]["stderr"] == pytest.approx(0.1 * (2 / 13 + 1 / 3) ** 0.5 / 3)
    assert table["by_task"]["T"]["score"] == pytest.approx(1 / 4)
    assert table["by_task"]["S"]["score"] == pytest.approx(1 / 5)
    assert table["by_task"]["S"]["stderr"] == pytest.approx(0.1 * (1 / 4 + 1 / 3 + 1 / 3 + 1 / 2 + 1) ** 0.5 / 5)
    partial = summarise_groups(results[1:])["milebench"]["separate"]["official"]["by_set"]
    assert (partial["T"], partial["average"]) == (None, None)
    assert len(select_tasks("milebench")) == len(SETS) == 29
    assert milebench.summarise({}) == {}


def write_longvqa(data_root, set_name, answers, *, length="32k", span="16_32", place="paste", **fields):
    data_root.write_image(f"V2PE-Data/image/long_vqa/{place}/{set_name}/val/a/1.png")
    records = [
        {
            "id": i,
            "image": ["a/1.png", "a/1.png"],
            "conversations": [
                {"from": "human", "value": f"<image>\n<image>\nWhat {i}?"},
                {"from": "gpt", "value": answer},
            ],
            **fields,
        }
        for i, answer in enumerate(answers)
    ]
    data_root.write_lines(f"V2PE-Data/val/long_vqa_{length}/val_long_vqa_{set_name}_{span}.jsonl", records)


def test_longvqa_sends_the_prompt_of_the_file(data_root):
    write_longvqa(data_root, "chartqa", ["Norway", "12"], metadata={"context_length": 31000})
    first, _ = data_root.read("longvqa/chartqa-32k")
    assert first.prompt == "<image>\n<image>\nWhat 0?"
    assert first.images[0] == data_root.root / "V2PE-Data/image/long_vqa/paste/chartqa/val/a/1.png"
    assert first.cost == 31000
    task = find_task("longvqa/chartqa-32k")
    assert (task.max_num, task.max_new_tokens) == (12, 32)
    scores = data_root.evaluate("longvqa/chartqa-32k", ["North Korea", "11.4"])
    assert official(scores)["score"] == 0.5
    assert scores["results"]["upstream"]["score"] == 1.0  # both become `no`
    assert official(scores)["metric"] == "RACC"


@pytest.mark.parametrize("metadata", [5, {"context_length": "long"}, {"context_length": [1]}])
def test_longvqa_refuses_lengths_that_are_no_numbers(data_root, metadata):
    write_longvqa(data_root, "chartqa", ["blue"], metadata=metadata)
    with pytest.raises(DataError, match=r"row 0.*(metadata|context_length)' is a"):
        data_root.read("longvqa/chartqa-32k")
    write_longvqa(data_root, "chartqa", ["blue"], metadata={"context_length": None})
    assert data_root.read("longvqa/chartqa-32k")[0].metadata["context_length"] is None


def test_longvqa_pages_have_a_folder_of_their_own(data_root):
    write_longvqa(data_root, "docvqa", ["abcd"], length="64k", span="56_64", place="image")
    scores = data_root.evaluate("longvqa/docvqa-64k", ["abxy"])
    assert official(scores)["score"] == 0.0  # a similarity of 0.5 is not enough here


def test_longvqa_score_of_captions_belongs_to_the_whole_set(data_root):
    golds, said = ["a red car on the street", "two dogs"], ["a red car on the street", "a cat"]
    write_longvqa(data_root, "textcaps", golds)
    numbers = official(data_root.evaluate("longvqa/textcaps-32k", said))
    rows = [
        (str(i), gold, r) for i, (gold, r) in enumerate(zip(["a red car on the street", "two dogs"], said, strict=True))
    ]
    lexicon = longvqa.load_lexicon()
    whole = longvqa.longvqa.score_corpus(rows, task="textcaps", protocol="official", lexicon=lexicon)
    assert numbers["score"] == pytest.approx(whole)
    single = longvqa.longvqa.score("two dogs", "a cat", task="textcaps", protocol="official", lexicon=lexicon)
    assert whole != pytest.approx((1 + single) / 2)


def test_longvqa_lists_sets_by_length_and_averages_complete_ones():
    assert len(select_tasks("longvqa/*-32k")) == 17
    results = {
        f"{name}-32k": {"results": {"official": {"score": i, "stderr": 0.17, "count": 2}}}
        for i, name in enumerate(longvqa.SETS)
    }
    mean = {"score": 8.0, "stderr": pytest.approx(0.17 / 17**0.5), "count": 34}
    assert longvqa.summarise(results) == {"32k": {"official": mean}}
    results.popitem()
    assert longvqa.summarise(results) == {}


@pytest.mark.parametrize("name", ["longvqa/chartqa-33k", "longvqa/other-32k", "milebench/Other", "milebench/TQA-x"])
def test_unknown_sets_are_refused(name):
    with pytest.raises(Exception, match="unknown task"):
        find_task(name)
