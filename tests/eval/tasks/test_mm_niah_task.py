import json

import pytest

from eval.core.task import Scored
from eval.tasks.mm_niah import FAMILY, aggregate, summarise
from eval.tasks.registry import find_task, list_task_names, select_tasks
from internvl.errors import ConfigError, DataError

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def read_one(root, name, record, *, prompts="upstream"):
    task = find_task(f"mm_niah/{name}-test", prompts=prompts)
    root.write(name, [record])
    (sample,) = task.read_samples(root.root)
    return task, sample


@pytest.mark.parametrize(("prompts", "joint"), [("upstream", ""), ("official", "\n")])
def test_open_questions_end_with_the_short_answer_sentence(benchmark_root, record, prompts, joint):
    task, sample = read_one(benchmark_root, "retrieval-text", record(3, num_images=2), prompts=prompts)
    assert sample.prompt == (f"text 0 <image>\ntext 1 <image>\nsecret 3. {joint}What is the secret?\n{SHORT}")
    assert [path.name for path in sample.images] == ["0.png", "1.png"]
    assert sample.images[0].parent == benchmark_root.root / "MM-NIAH" / "mm_niah_test" / "images"
    assert task.max_new_tokens == 16
    assert task.max_num == (5 if prompts == "upstream" else 1)


@pytest.mark.parametrize("prompts", ["upstream", "official"])
def test_text_options_become_lettered_lines(benchmark_root, record, prompts):
    _, sample = read_one(
        benchmark_root, "retrieval-image", record(0, answer=1, choices=["left", "right", "up"]), prompts=prompts
    )
    assert sample.prompt.endswith(f"What is the secret?\nA. left\nB. right\nC. up\n{LETTER}")
    assert sample.metadata["chance"] == pytest.approx(1 / 3)


def test_image_options_become_lettered_images_behind_the_others(benchmark_root, record):
    _, sample = read_one(benchmark_root, "reasoning-image", record(0, answer=0, choices_image_path=["2.png", "3.png"]))
    assert sample.prompt.endswith(f"\nA. <image>\nB. <image>\n{LETTER}")
    assert [path.name for path in sample.images] == ["0.png", "2.png", "3.png"]
    assert sample.prompt.count("<image>") == 3
    assert sample.metadata["chance"] == 0.5


@pytest.mark.parametrize(("prompts", "ending", "tokens"), [("upstream", "", 320), ("official", f"\n{SHORT}", 32)])
def test_counting_differs_between_the_prompt_styles(benchmark_root, record, prompts, ending, tokens):
    task, sample = read_one(benchmark_root, "counting-text", record(0, answer=[1, 2]), prompts=prompts)
    assert sample.prompt.endswith(f"What is the secret?{ending}")
    assert task.max_new_tokens == tokens


def test_counting_answers_may_be_json_text(benchmark_root, record):
    _, sample = read_one(benchmark_root, "counting-image", record(0, answer="[1, 2]"))
    assert sample.answer == [1, 2]


def test_metadata_carries_what_scoring_needs(benchmark_root, record):
    _, sample = read_one(benchmark_root, "retrieval-text", record(7, chance=0.125, placed_depth=[0.1, 0.3]))
    assert sample.id == "7"
    assert sample.metadata == {
        "context_length": 400,
        "placed_depth": [0.1, 0.3],
        "chance": 0.125,
        "question": "What is the secret?",
    }
    assert sample.cost == 400


@pytest.mark.parametrize(
    ("needles", "found"),
    [(["secret", "1.png", "elsewhere"], ("secret", 1)), (None, ()), ("secret", ()), ([0.5, {}], ())],
)
def test_needles_are_texts_of_the_context_and_places_of_pictures(benchmark_root, record, needles, found):
    _, sample = read_one(benchmark_root, "retrieval-text", record(3, num_images=2, needles=needles))
    assert sample.needles == found


def test_unknown_chance_is_none(benchmark_root, record):
    assert read_one(benchmark_root, "retrieval-text", record(0))[1].metadata["chance"] is None


def change(record, **fields):
    return {**record, **fields}


@pytest.mark.parametrize(
    ("stem", "spoil", "message"),
    [
        ("retrieval-text", lambda r: change(r, context="no image"), "0 <image> in context and question, 1 in"),
        ("retrieval-text", lambda r: change(r, answer=None), "'answer' is a NoneType"),
        ("retrieval-text", lambda r: change(r, answer=[1]), "expected text or an option index"),
        ("counting-text", lambda r: change(r, answer="five"), "expected a list of counts"),
        ("counting-text", lambda r: change(r, answer=[]), "expected a list of counts"),
        ("retrieval-text", lambda r: {k: v for k, v in r.items() if k != "question"}, "'question' is missing"),
        ("retrieval-text", lambda r: change(r, meta={**r["meta"], "placed_depth": 1.5}), "placed_depth"),
        ("retrieval-text", lambda r: change(r, meta={**r["meta"], "placed_depth": ["x"]}), "placed_depth must be"),
        ("retrieval-text", lambda r: change(r, meta={**r["meta"], "chance": 3}), "meta.chance"),
        ("retrieval-text", lambda r: change(r, meta={"placed_depth": 0}), "'meta.context_length' is missing"),
        (
            "retrieval-image",
            lambda r: change(r, meta={**r["meta"], "choices": ["a"], "choices_image_path": ["1.png"]}),
            "expected one of them",
        ),
        ("retrieval-image", lambda r: change(r, meta={**r["meta"], "choices": list(range(27))}), "27 options"),
        ("retrieval-image", lambda r: change(r, meta={**r["meta"], "choices": ["<image>"]}), "text option"),
        ("retrieval-image", lambda r: change(r, meta={**r["meta"], "choices": "ab"}), "'meta.choices' is a str"),
        ("retrieval-text", lambda r: change(r, images_list=["../../0.png"]), "leads out of its root"),
        ("retrieval-text", lambda r: change(r, images_list=["/etc/hostname"]), "not a path below"),
        ("retrieval-text", lambda r: change(r, images_list=[None]), r"'images_list\[0\]' is a NoneType"),
        (
            "retrieval-image",
            lambda r: change(r, meta={**r["meta"], "choices_image_path": ["a/../../1.png"]}),
            "leads out of its root",
        ),
        (
            "retrieval-image",
            lambda r: change(r, answer=2, meta={**r["meta"], "choices": ["a", "b"]}),
            "one of 2 options",
        ),
    ],
)
def test_wrong_records_name_file_and_row(benchmark_root, record, stem, spoil, message):
    good = record(0, answer=[1] if stem.startswith("counting") else "blue")
    benchmark_root.write(stem, [good, spoil(good)])
    with pytest.raises(DataError, match=message) as error:
        find_task(f"mm_niah/{stem}-test").read_samples(benchmark_root.root)
    assert f"{stem}.jsonl, row 1" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no records"), (b'{"id": 1', "line 1 is no JSON"), (b"[1]\n", "expected an object"), (b'"\xff"\n', "UTF-8")],
)
def test_broken_annotation_files_are_named(benchmark_root, content, message):
    path = benchmark_root.write("retrieval-text", [])
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_task("mm_niah/retrieval-text-test").read_samples(benchmark_root.root)


def test_names_groups_and_patterns_select_tasks_once():
    assert len(select_tasks("mm_niah")) == 12
    assert [t.name for t in select_tasks("mm_niah/*-text-val")] == [
        f"mm_niah/{kind}-text-val" for kind in ("retrieval", "counting", "reasoning")
    ]
    names = [t.name for t in select_tasks(" mm_niah/counting-text-test, mm_niah/*-text-test,")]
    assert names[0] == "mm_niah/counting-text-test"
    assert len(names) == len(set(names)) == 3
    assert select_tasks("mm_niah/retrieval-text-rag-val")[0].annotation.name == "retrieval-text-rag.jsonl"


@pytest.mark.parametrize("patterns", ["mm_niah/retrieval-text", "mm_niah/x-*", "mm_niah/../x-test"])
def test_unknown_tasks_of_a_group_are_refused_with_the_known_ones(patterns):
    with pytest.raises(ConfigError, match="mm_niah/retrieval-text-test"):
        select_tasks(patterns)


@pytest.mark.parametrize("patterns", ["", " , ", "other/x", "*/none"])
def test_unknown_groups_are_refused_with_the_known_ones(patterns):
    with pytest.raises(ConfigError, match=r"known groups: mm_niah, mm_niah_long, vqa, .*--list"):
        select_tasks(patterns)


def test_unknown_prompt_style_is_refused():
    with pytest.raises(ConfigError, match="upstream, official"):
        select_tasks("mm_niah", prompts="mine")


def test_aggregation_reports_lengths_grid_and_published_form():
    scored = [
        Scored(1.0, {"context_length": 1500, "placed_depth": 0.1}),
        Scored(0.0, {"context_length": 1500, "placed_depth": 0.1}),
        Scored(1.0, {"context_length": 70_000, "placed_depth": 1.0}),
        Scored(1.0, {"context_length": 10, "placed_depth": 0.5}),
    ]
    numbers = aggregate(scored, None)
    assert [(r["low"], r["score"], r["count"]) for r in numbers["by_length"]] == [
        (None, 1.0, 1), (1000, 0.5, 2), (64000, 1.0, 1),
    ]  # fmt: skip
    grid = numbers["by_depth_and_length"]
    assert grid["counts"][1] == (2, 0, 0, 0, 0)
    assert grid["counts"][11] == (0, 0, 0, 0, 1)
    assert len(grid["lengths"]) == len(grid["counts"]) == 12
    form = numbers["published_form"]
    assert form["scores"][0] == 0.1
    assert form["scores_stderr"][0] == pytest.approx((0.25 / 2) ** 0.5 / 5)
    assert form["average_stderr"] == pytest.approx((0.25 / 2) ** 0.5 / 5 / 11)  # the only cell with two answers
    own = aggregate(scored, (100, 2000))
    assert [r["count"] for r in own["by_length"]] == [1, 2, 1]
    json.dumps(numbers)


def test_summary_needs_all_six_tasks_of_a_split():
    def result(num_right):
        scored = [
            Scored(float(place < num_right), {"context_length": length, "placed_depth": depth / 5 + 0.1})
            for length in (1500, 3000)
            for depth in range(5)
            for place in range(10)
        ]
        numbers = aggregate(scored, (1000, 2000))
        return {"results": dict.fromkeys(("official", "upstream"), numbers)}

    names = [name for name in FAMILY.names if name.endswith("test")]
    results = {name: result(9 if "-text-" in name else 3) for name in names}
    table = summarise(results)["test"]["official"]
    assert table["overall"] == [0.6, 0.6]
    text, image = (0.9 * 0.1 / 100, 0.3 * 0.7 / 100)  # variance of one task
    assert table["overall_stderr"] == [pytest.approx((3 * 2 * (text + image)) ** 0.5 / 6)] * 2
    assert table["text"] == {"score": pytest.approx(0.9), "stderr": pytest.approx((text / 3) ** 0.5), "count": 300}
    assert table["image"]["score"] == pytest.approx(0.3)
    assert table["average"]["score"] == pytest.approx(0.6)
    assert table["average"]["stderr"] == pytest.approx(((text + image) / 3) ** 0.5 / 2)
    for entry in results.values():  # as earlier versions wrote it
        del entry["results"]["official"]["by_depth_and_length"]["square_sums"]
    assert summarise(results)["test"]["official"] == table
    del results[names[0]]
    assert summarise(results) == {}


def test_every_listed_task_can_be_made():
    assert [task.name for task in select_tasks(",".join(list_task_names()))] == list_task_names()
