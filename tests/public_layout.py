"""The data of V2PE's public README, in exactly its folders and under its file names, a few records each.

    data/SET/                          general benchmarks
    dataset/benchmark/                 MM-NIAH, MileBench
    dataset/{annotation,image,val}/    V2PE-Data: training documents, long MM-NIAH, Long-VQA

MMMU is not among them: the README says that it is downloaded. `lay_out_mmmu_cache` is what such a download leaves.
"""

import itertools
import json
from pathlib import Path

from eval.metrics.mmmu import DOMAINS
from tests.eval.published import (
    LETTER,
    SHORT,
    draw,
    encode_image,
    place,
    write_documents,
    write_image,
    write_json,
    write_lines,
    write_milebench,
    write_mm_niah,
    write_mm_niah_long,
    write_mmmu_parquet,
    write_table,
)

REPOSITORY = Path(__file__).parents[1]
META_FILES = tuple(REPOSITORY / f"shell/data/annotation_train_{length}.json" for length in ("32k", "128k", "256k"))
LONG_VQA_IMAGES = ("deepform", "docvqa", "infovqa", "kleistercharity", "svqa", "visualmrc")
LONG_VQA_PASTED = (
    "chartqa", "clevr", "dvqa", "gqa", "ocrvqa", "okvqa", "tabfact", "textcaps", "textvqa", "vizwiz",
    "wikitablequestions",
)  # fmt: skip
LONG_VQA_LENGTHS = {"32k": "16_32", "40k": "32_40", "48k": "40_48", "56k": "48_56", "64k": "56_64"}
GITHUB_PAGE = "<!DOCTYPE html>\n<html><body>problems.json</body></html>\n"  # what the README's wget of a blob URL saves
MMMU_COMMIT = "0" * 40


def lay_out_public_data(root: Path) -> None:
    """All of it below `root`, the working directory of the README's commands."""
    _write_general(root)
    benchmark = root / "dataset/benchmark"
    write_mm_niah(benchmark)
    write_milebench(benchmark)
    _write_v2pe_data(root / "dataset")


def lay_out_mmmu_cache(hub: Path) -> Path:
    """What the hub's client keeps of MMMU in its cache folder `hub`; returns the folder of its files."""
    folder = hub / "datasets--MMMU--MMMU"
    snapshot = folder / "snapshots" / MMMU_COMMIT
    for split in ("dev", "validation", "test"):
        write_mmmu_parquet(snapshot, split, subjects=[*itertools.chain(*DOMAINS.values())], num=1)
    place(folder / "refs/main").write_text(MMMU_COMMIT)
    return snapshot


def _write_general(root: Path) -> None:
    _write_charts(root)
    _write_documents(root, "docvqa", "{split}/documents/{index}.png", answers="val/val_v1.0.json")
    write_json(root / "data/docvqa/test/test_v1.0.json", {"data": []})
    posters = "infographicsvqa_images/{split}{index}.png"
    _write_documents(root, "infographicsvqa", posters, answers="infographicsVQA_val_v1.0_withQT.json")
    text = f"Which?\nA. cat\nB. dog\n{LETTER}"
    _write_questions(
        root, "data/ai2diagram/test_vlmevalkit.jsonl", "AI2D_TEST/{index}.png", question=(text, text), answer="AB"
    )
    choices = (["cat", "dog"], ["cat", "dog", "cow"])
    science = {"hint": ("Look.", ""), "choices": choices, "answer": (1, 2)}
    _write_questions(root, "data/scienceqa/scienceqa_test_img.jsonl", "images/test/{index}/image.png", **science)
    (root / "data/scienceqa/problems.json").write_text(GITHUB_PAGE)
    _write_pope(root / "data")
    _write_seed(root / "data/SEED")
    _write_mmbench(root / "data/mmbench")


def _write_charts(root: Path) -> None:
    """All four files that the README fetches."""
    for file in ("train_human", "train_augmented", "test_human", "test_augmented"):
        picture = f"ChartQA Dataset/{file.partition('_')[0]}/png/{file}{{index}}.png"
        _write_questions(root, f"data/chartqa/{file}.jsonl", picture, answer=("12", ["a", "b"]))


def _write_documents(root: Path, folder: str, picture: str, *, answers: str) -> None:
    for split in ("train", "val", "test"):
        _write_questions(root, f"data/{folder}/{split}.jsonl", picture.replace("{split}", split))
    write_documents(root / "data" / folder / answers, (100, 101))


def _write_questions(root: Path, file: str, picture: str, **fields) -> None:
    """Two questions; `fields` hold two values each. Records name pictures as published, from `data/` on."""
    folder = Path(file).parent
    records = []
    for index in (0, 1):
        image = str(folder / picture.format(index=index))
        write_image(root / image, seed=index)
        own = {name: values[index] for name, values in fields.items()}
        records.append({"image": image, "question": f"What is it, {index}?", "question_id": 100 + index, **own})
    write_lines(root / file, records)


def _write_pope(data: Path) -> None:
    """With the README's link to COCO's pictures."""
    records = []
    for number, category in enumerate(("random", "popular", "adversarial")):
        image = f"COCO_val2014_{number:012}.jpg"
        write_image(data / "coco/val2014" / image, seed=number)
        texts = [f"Is there a {thing} in the image?" for thing in ("cat", "dog")]
        labels = [{"question_id": n, "image": image, "text": texts[n], "label": ("yes", "no")[n]} for n in (0, 1)]
        write_lines(data / f"pope/coco/coco_pope_{category}.json", labels)
        for text in texts:
            record = {"question_id": len(records), "image": image, "text": f"{text}\n{SHORT}", "category": category}
            records.append(record)
    write_lines(data / "pope/llava_pope_test.jsonl", records)
    (data / "pope/val2014").symlink_to("../coco/val2014")


def _write_seed(folder: Path) -> None:
    """Without SEED-Bench.json, which the README does not fetch; one question is about a frame of a video."""
    text = f"Which?\nA. a\nB. b\nC. c\nD. d\n{LETTER}"
    records = []
    for index, (name, answer) in enumerate({"101669": "A", "v1_2": "B"}.items()):
        image = f"SEED-Bench-image/{name}"  # published pictures have no ending
        draw(index).save(place(folder / image), "png")
        records.append({"question_id": name, "image": image, "text": text, "answer": answer, "category": "Scene"})
    write_lines(folder / "seed.jsonl", records)


def _write_mmbench(folder: Path) -> None:
    """All six tables; the answers of the test splits are not public."""
    kinds = {"category": "ocr", "l2-category": "coarse_perception", "split": "dev", "comment": "nan", "source": "nan"}
    options = {"A": "cat", "B": "dog", "C": "cow", "D": "nan"}
    rows = [
        {"index": i, "question": "Which?", "hint": "Look.", **options, "answer": "A", **kinds, "image": encode_image(i)}
        for i in (1, 2)
    ]
    rotated = {**rows[0], "index": 1_000_001, "A": "dog", "B": "cat", "answer": "B", "image": "1"}
    hidden = [{name: cell for name, cell in row.items() if name != "answer"} for row in (*rows, rotated)]
    for file in ("CCBench_legacy", "mmbench_dev_20230712", "mmbench_dev_cn_20231003", "mmbench_dev_en_20231003"):
        write_table(folder / f"{file}.tsv", rows if file.startswith("CC") else [*rows, rotated])
    for language in ("cn", "en"):
        write_table(folder / f"mmbench_test_{language}_20231003.tsv", hidden)


def _write_v2pe_data(dataset: Path) -> None:
    for meta in META_FILES:
        for source in json.loads(meta.read_text()).values():
            write_image(dataset / source["root"] / "a/1.png", seed=1)
            write_lines(dataset / source["annotation"], _make_documents())
    write_mm_niah_long(dataset, folder="val")  # their pictures are those of MM-NIAH's test split
    write_image(dataset / "image/long_mr/val/1.png", seed=1)
    for kind, names in (("image", LONG_VQA_IMAGES), ("paste", LONG_VQA_PASTED)):
        for name in names:
            write_image(dataset / f"image/long_vqa/{kind}/{name}/val/a/1.png", seed=1)
            for length, span in LONG_VQA_LENGTHS.items():
                file = f"val/long_vqa_{length}/val_long_vqa_{name}_{span}.jsonl"
                write_lines(dataset / file, _make_documents(answer="Yes" if name == "tabfact" else "12"))


def _make_documents(answer: str = "12") -> list[dict]:
    """Two conversations, about one picture and about two."""
    documents = []
    for number in (1, 2):
        turns = [{"from": "human", "value": "<image>\n" * number + "What?"}, {"from": "gpt", "value": answer}]
        documents.append({"id": number, "image": ["a/1.png"] * number, "conversations": turns})
    return documents
