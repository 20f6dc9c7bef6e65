"""A null, missing or wrong-typed field in a public file is a DataError that names the file, whatever its value."""

import copy
import json

import pytest

from eval.check_data import check_task
from eval.core.data_root import DataRoot
from eval.tasks.registry import find_task
from tests.eval.published import VIDEO, write_mmmu
from tests.eval.published_documents import write_documents
from tests.public_layout import lay_out_public_data

WRONG = (None, 7, [], {}, [None], "", "x", 1.5, True)
# Task -> a file whose records are spoiled, and the key of its list of records (None: it is the list, or a jsonl file).
FILES = {
    "vqa/chartqa-test-human": ("data/chartqa/test_human.jsonl", None),
    "vqa/docvqa-val": ("data/docvqa/val.jsonl", None),
    "vqa/infovqa-val": ("data/infographicsvqa/infographicsVQA_val_v1.0_withQT.json", "data"),
    "vqa/ai2d-test": ("data/ai2diagram/test_vlmevalkit.jsonl", None),
    "scienceqa/test": ("data/scienceqa/scienceqa_test_img.jsonl", None),
    "pope/test": ("data/pope/llava_pope_test.jsonl", None),
    "seed/image": ("data/SEED/seed.jsonl", None),
    "mm_niah/retrieval-text-test": ("dataset/benchmark/MM-NIAH/mm_niah_test/annotations/retrieval-text.jsonl", None),
    "mm_niah_long/retrieval-image-test-128k": (
        "dataset/val/long_mr_128k/test_long_mr_image_retrieval_64_128.jsonl",
        None,
    ),
    "milebench/TQA": ("dataset/benchmark/MileBench/TQA/TQA.json", "data"),
    "mmmu/val": ("dataset/benchmark/MMMU/validation.jsonl", None),
    "videomme/test": ("dataset/benchmark/Video-MME/videomme.json", None),
    "longvideobench/val": ("dataset/benchmark/LongVideoBench/lvb_val.json", None),
    "mlvu/needle": ("dataset/benchmark/MLVU/json/2_needle.json", None),
    "lvbench/test": ("dataset/benchmark/LVBench/video_info.meta.jsonl", None),
    "vnbench/test": ("dataset/benchmark/VNBench/VNBench-main-4try.json", None),
    "mmlongbench/infoseek-8k": ("dataset/benchmark/MMLongBench/mmlb_data/vrag/infoseek_K8_dep3.jsonl", None),
    "mmlongbench/counting-image-8k": (
        "dataset/benchmark/MMLongBench/mmlb_data/NIAH/counting-image_test_K8_dep3.jsonl",
        None,
    ),
    "mmlongbench/mmlongdoc-8k": ("dataset/benchmark/MMLongBench/mmlb_data/documentQA/mmlongdoc_K8.jsonl", None),
    "mmlongbench_doc/test": ("dataset/benchmark/MMLongBench-Doc/samples.json", None),
    "longdocurl/test": ("dataset/benchmark/LongDocURL/LongDocURL_public.jsonl", None),
    "slidevqa/test": ("dataset/benchmark/SlideVQA/annotations/qa/test.jsonl", None),
    "dude/val": ("dataset/benchmark/DUDE/2023-03-23_DUDE_gt_test_PUBLIC.json", "data"),
    "longvqa/chartqa-32k": ("dataset/val/long_vqa_32k/val_long_vqa_chartqa_16_32.jsonl", None),
}


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    lay_out_public_data(folder)
    write_mmmu(folder / "dataset/benchmark")
    for write in VIDEO:
        write(folder / "dataset/benchmark")
    write_documents(folder / "dataset/benchmark")
    return folder


def list_places(value, place=()):
    """Every field of a record, also inside of others."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*place, key)
            yield from list_places(inner, (*place, key))


def spoil(record, place, value):
    changed = copy.deepcopy(record)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return changed


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_field_is_named_with_its_file(laid_out, name):
    file, key = FILES[name]
    path, task = laid_out / file, find_task(name)
    root = DataRoot((laid_out / "dataset/benchmark", laid_out / "data", laid_out / "dataset"))
    original = path.read_text()
    is_jsonl = path.suffix == ".jsonl"
    content = [json.loads(line) for line in original.splitlines()] if is_jsonl else json.loads(original)
    records = content if key is None else content[key]
    refused = 0
    try:
        for place in list_places(records[-1]):
            for value in (..., *WRONG):
                spoiled = [*records[:-1], spoil(records[-1], place, value)]
                whole = json.dumps(spoiled if key is None else {**content, key: spoiled})
                lines = "".join(json.dumps(record) + "\n" for record in spoiled)
                path.write_text(lines if is_jsonl else whole)
                state = check_task(task, root)  # anything but a DataError would end it
                assert not state.fault or path.name in state.fault or "is not in the file of answers" in state.fault
                refused += bool(state.fault)
    finally:
        path.write_text(original)
    assert refused > 0
