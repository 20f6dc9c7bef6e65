"""MM-NIAH's items in longer contexts, built as a user builds them and read by the evaluator."""

import json

import numpy as np
import pytest

from eval.tasks.registry import find_task
from internvl.synth.needles.extend import main
from tests.synth.built import MAX_NUM, items_of, read_jsonl


@pytest.mark.parametrize("task", ["retrieval-text", "counting-text", "reasoning-image"])
def test_extended_samples_keep_needles_questions_and_answers(tmp_path, needles, checkpoint, tiled_reader, task):
    folder = needles / "MM-NIAH" / "mm_niah_test"
    out = tmp_path / "long"
    options = f"--annotation {folder}/annotations/{task}.jsonl --images {folder}/images --model {checkpoint}"
    options += f" --out {out} --lengths 128k --num_samples 3 --max_dynamic_patch {MAX_NUM}"
    assert main(options.split()) == 0
    kind, needle = task.split("-")
    name = f"mm_niah/{task}-128k-test" if kind == "counting" else f"mm_niah_long/{task}-test-128k"
    samples = find_task(name, prompts="upstream").read_samples(out)
    assert len(samples) == 3
    (path,) = out.rglob("*.jsonl")
    for old, new, sample in zip(items_of(needles, task), read_jsonl(path), samples, strict=False):
        visual = sum(tiled_reader.count_image(image) for image in sample.images[: len(new["images_list"])])
        length = tiled_reader.count_text(new["context"]) + visual
        assert length == new["meta"]["context_length"]
        assert abs(length - 128_000) <= 1280
        assert (new["question"], new["answer"]) == (old["question"], old["answer"])
        assert np.shape(new["meta"]["placed_depth"]) == np.shape(old["meta"]["placed_depth"])
        assert np.allclose(new["meta"]["placed_depth"], old["meta"]["placed_depth"], atol=0.1)
        foreign = {needle for item in items_of(needles, task) for needle in item["meta"]["hidden"]}
        assert not any(line in foreign for line in set(new["context"].splitlines()) - set(old["context"].splitlines()))
        assert not (set(new["images_list"]) - set(old["images_list"])) & foreign
        for found in old["meta"]["needles"]:
            where = new["images_list"] if needle == "image" else new["context"]
            assert where.count(found) == 1


def test_counts_that_go_image_by_image_get_a_zero_for_every_new_image(tmp_path, pictures, checkpoint):
    lines = []
    for number in range(3):
        context = "".join(f"Sentence {number} {n}. <image>\n" for n in range(4))
        meta = {"placed_depth": [0.2, 0.6], "context_length": 100, "needles": ["a", "b"]}
        images = [f"{(number + n) % 12}.png" for n in range(4)]
        record = {"id": number, "images_list": images, "context": context, "question": "How many in each?"}
        lines.append({**record, "answer": [1, 0, 2, 0], "meta": meta})
    annotation = tmp_path / "counting-image.jsonl"
    annotation.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = f"--annotation {annotation} --images {pictures} --model {checkpoint} --out {tmp_path / 'out'}"
    assert main(f"{options} --lengths 1k --num_samples 3 --max_dynamic_patch 4".split()) == 0
    for record in items_of(tmp_path / "out", "counting-image-1k"):
        assert len(record["answer"]) == len(record["images_list"]) > 4
        assert [count for count in record["answer"] if count] == [1, 2]
