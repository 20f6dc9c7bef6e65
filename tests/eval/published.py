"""All benchmarks in their published forms, a few questions each, with real pictures and videos.

`write_all(root)` fills a data root that every script under scripts/ can evaluate; the other functions write one
benchmark. Between them the records have every variant of a field that is published: lists and texts as answers,
missing ones, pictures inside the annotation, pictures as options, several pictures, pictures on one canvas.
"""

import base64
import csv
import io
import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from eval.tasks import longvqa, milebench, mlvu, mvbench
from eval.tasks.mm_niah_long import LENGTHS as LONG_MR_FILES

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def place(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def draw(seed=0, size=(40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def write_image(path: Path, seed=0, size=(40, 30)) -> None:
    draw(seed, size).save(place(path))


def encode_image(seed=0) -> str:
    buffer = io.BytesIO()
    draw(seed).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def write_video(path: Path, num_frames=24, fps=8) -> None:
    with av.open(str(place(path)), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(num_frames):
            pixels = np.full((32, 32, 3), 9 * index % 256, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_lines(path: Path, records) -> None:
    place(path).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_json(path: Path, content) -> None:
    place(path).write_text(json.dumps(content), encoding="utf-8")


def write_table(path: Path, rows) -> None:
    with place(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def write_questions(root: Path, folder: str, file: str, *, num=2, **fields) -> list[dict]:
    """Questions with a picture each; a list among the fields has one value per question."""
    records = []
    for index in range(num):
        write_image(root / folder / f"pictures/{index}.png", seed=index)
        own = {key: value[index] if isinstance(value, tuple) else value for key, value in fields.items()}
        record = {"image": f"data/{folder}/pictures/{index}.png", "question": f"What is it, {index}?"}
        records.append({**record, "question_id": 100 + index, **own})
    write_lines(root / folder / file, records)
    return records


def write_people(path: Path, ids, answer="red") -> None:
    people = [{"question_id": i, "answers": [{"answer": answer, "answer_id": n} for n in range(10)]} for i in ids]
    write_json(path, {"annotations": people})


def write_documents(path: Path, ids) -> None:
    data = [{"questionId": i, "question": "q", "answers": ["12", "twelve"]} for i in ids]
    write_json(path, {"dataset_name": "documents", "data": data})


def write_vqa(root: Path) -> None:
    write_questions(root, "chartqa", "test_human.jsonl", answer=("12", ["a", "b"]))
    write_questions(root, "chartqa", "test_augmented.jsonl", answer=("3%", "yes"))
    ids = (100, 101)
    for split in ("val", "test"):
        write_questions(root, "docvqa", f"{split}.jsonl")
        write_questions(root, "infographicsvqa", f"{split}.jsonl")
        write_questions(root, "vizwiz", f"vizwiz_{split}.jsonl")
        write_questions(root, "ocrvqa", f"ocrvqa_{split}.jsonl", answer=("red", ["red", "blue"]))
        write_questions(root, "vqav2", f"vqav2_{'testdev' if split == 'test' else split}.jsonl")
    write_documents(root / "docvqa/val/val_v1.0.json", ids)
    write_documents(root / "infographicsvqa/infographicsVQA_val_v1.0_withQT.json", ids)
    write_people(root / "vizwiz/vizwiz_val_annotations.json", ids, "unanswerable")
    write_people(root / "vqav2/v2_mscoco_val2014_annotations.json", ids)
    write_questions(root, "okvqa", "okvqa_val.jsonl")
    write_people(root / "okvqa/mscoco_val2014_annotations.json", ids)
    for file in ("textvqa_val.jsonl", "textvqa_val_llava.jsonl"):
        write_questions(root, "textvqa", file)
    write_people(root / "textvqa/textvqa_val_annotations.json", ids)
    options = f"Which?\nA. cat\nB. dog\n{LETTER}"
    write_questions(root, "ai2diagram", "test_vlmevalkit.jsonl", question=options, answer=("A", "B"))
    for file in ("test_balanced.jsonl", "llava_gqa_testdev_balanced_qwen_format.jsonl"):
        write_questions(root, "gqa", file, answer="red")
    kinds = {"100": "query", "101": "verify"}
    golds = {i: {"answer": "red", "isBalanced": True, "types": {"structural": kind}} for i, kind in kinds.items()}
    write_json(root / "gqa/testdev_balanced_questions.json", golds)


def write_scienceqa(root: Path) -> None:
    choices = (["cat", "dog"], ["cat", "dog", "cow", "hen", "pig"])
    write_questions(root, "scienceqa", "scienceqa_test_img.jsonl", hint=("Look.", ""), choices=choices, answer=(1, 4))


def write_pope(root: Path) -> None:
    questions = []
    for number, category in enumerate(("random", "popular", "adversarial")):
        image, text = f"COCO_{number}.jpg", "Is there a cat in the image?"
        write_image(root / "pope/val2014" / image, seed=number)
        labels = [{"question_id": n, "image": image, "text": text, "label": ("yes", "no")[n]} for n in (0, 1)]
        labels[1]["text"] = "Is there a dog in the image?"
        write_lines(root / f"pope/coco/coco_pope_{category}.json", labels)
        for label in labels:
            record = {"question_id": len(questions), "image": image, "text": f"{label['text']}\n{SHORT}"}
            questions.append({**record, "category": category})
    write_lines(root / "pope/llava_pope_test.jsonl", questions)


def write_seed(root: Path) -> None:
    text = f"Which?\nA. a\nB. b\nC. c\nD. d\n{LETTER}"
    ids = ("101669", "v1_2")
    for index in (0, 1):
        write_image(root / f"SEED/SEED-Bench-image/{index}.png", seed=index)
    lines = [
        {"question_id": i, "image": f"SEED-Bench-image/{n}.png", "text": text, "answer": "A", "category": "Scene"}
        for n, i in enumerate(ids)
    ]
    write_lines(root / "SEED/seed.jsonl", lines)
    questions = [
        {"question_id": i, "question_type_id": n + 1, "data_type": "image", "answer": "AB"[n], "choice_a": "a"}
        for n, i in enumerate(ids)
    ]
    write_json(root / "SEED/SEED-Bench.json", {"question_type": {"Scene": 1, "Identity": 2}, "questions": questions})


def write_mmmu_parquet(folder: Path, split="validation", *, subjects=("Art", "Music"), num=2) -> None:
    """As on the hub: a folder per subject, pictures as bytes."""
    import pyarrow
    from pyarrow import parquet

    for subject in subjects:
        rows = []
        for index in range(1, num + 1):
            is_open = index % 2 == 0
            buffer = io.BytesIO()
            draw(index).save(buffer, "png" if index % 2 else "jpeg")
            picture = {"bytes": buffer.getvalue(), "path": f"{split}_{subject}_{index}_1.png"}
            row = {
                "id": f"{split}_{subject}_{index}",
                "question": "What does <image 1> show?",
                "options": "[]" if is_open else "['cat', \"it's a dog\"]",
                "explanation": "",
                **{f"image_{n}": picture if n <= index else None for n in range(1, 8)},
                "answer": "?" if split == "test" else "['2', 'two']" if is_open else "B",
                "question_type": "open" if is_open else "multiple-choice",
            }
            rows.append(row)
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        names = [*rows[0]]
        schema = pyarrow.schema([(n, kind if n.startswith("image_") else pyarrow.string()) for n in names])
        table = pyarrow.Table.from_pylist(rows, schema=schema)
        parquet.write_table(table, place(folder / subject / f"{split}-00000-of-00001.parquet"))


def write_mmmu(root: Path) -> None:
    """As the converter leaves it."""
    for index in (1, 2):
        write_image(root / f"MMMU/images/{index}.png", seed=index)
    one = {"id": "validation_Art_1", "question": "<image 1>?", "options": "['a', 'b']", "image_1": "images/1.png"}
    two = {"id": "validation_Music_2", "question": "How many?", "options": "[]", "image_1": "images/1.png"}
    two["image_2"] = "images/2.png"
    kinds = ({"question_type": "multiple-choice", "answer": "A"}, {"question_type": "open", "answer": "['2', 'two']"})
    for split in ("dev", "validation", "test"):
        records = [{**one, **kinds[0]}, {**two, **kinds[1]}]
        if split == "test":
            records = [{**record, "answer": "?"} for record in records]
        ids = [record["id"].replace("validation", split) for record in records]
        write_lines(root / f"MMMU/{split}.jsonl", [{**r, "id": i} for r, i in zip(records, ids, strict=True)])


def write_mmbench(root: Path) -> None:
    """A question with its rotation, whose picture is that of the first row; one with a hint and five options."""
    one = {"index": 1, "question": "Which?", "A": "cat", "B": "dog", "answer": "A", "category": "identity_reasoning"}
    two = {"index": 2, "hint": "Look.", "question": "Which?", **{letter: letter.lower() * 3 for letter in "ABCDE"}}
    kinds = {"l2-category": "attribute_reasoning", "split": "dev", "image": encode_image(0)}
    rotation = {"index": 1_000_001, "A": "dog", "B": "cat", "answer": "B", "image": "1"}
    two = {**two, "answer": "C", "category": "ocr", **kinds, "image": encode_image(1)}
    rows = [{**one, **kinds}, {**one, **kinds, **rotation}, two]
    for file in ("mmbench_dev_20230712", "mmbench_dev_cn_20231003", "CCBench_legacy"):
        write_table(root / f"mmbench/{file}.tsv", rows)
    for language in ("en", "cn"):
        hidden = [{key: value for key, value in row.items() if key != "answer"} for row in rows]
        write_table(root / f"mmbench/mmbench_test_{language}_20231003.tsv", hidden)


def make_needle(index: int, **fields) -> dict:
    """A record of MM-NIAH."""
    meta = {"placed_depth": index / 4, "context_length": 1500 * (index + 1), "num_images": 1, "needles": ["n"]}
    meta |= {"choices": None, "choices_image_path": None, **fields.pop("meta", {})}
    record = {"id": index, "images_list": ["1.png"], "context": f"{index} text <image> more. ", "question": "What?"}
    return {**record, "answer": "blue", **fields, "meta": meta}


def write_mm_niah(root: Path) -> None:
    text = [make_needle(0), make_needle(1, answer="3.5", meta={"placed_depth": [0.1, 1.0]})]
    lettered = [make_needle(0, answer=1, meta={"choices": ["up", "down"]}), make_needle(1)]
    pictured = [make_needle(i, answer=i, meta={"choices_image_path": ["2.png", "3.png"]}) for i in range(2)]
    counted = [make_needle(0, answer=[1, 2]), make_needle(1, answer="[3]", images_list=[], context="no picture. ")]
    for split in ("val", "test"):
        folder = root / "MM-NIAH" / f"mm_niah_{split}"
        for index in (1, 2, 3):
            write_image(folder / f"images/{index}.png", seed=index, size=(56, 28 * index))
        for needle in ("text", "image"):
            write_lines(folder / f"annotations/retrieval-{needle}.jsonl", text if needle == "text" else pictured)
            write_lines(folder / f"annotations/counting-{needle}.jsonl", counted)
            write_lines(folder / f"annotations/reasoning-{needle}.jsonl", lettered)


def write_mm_niah_long(root: Path, folder: str = "V2PE-Data/val") -> None:
    """Short records under the names of the long files; the pictures are those of `write_mm_niah`."""
    for name, span in LONG_MR_FILES.items():
        place_of_length = root / folder / f"long_mr_{name.lower()}"
        length = 1000 * int(span.split("_")[0])
        for needle in ("text", "image"):
            for kind in ("retrieval", "reasoning"):
                answers = ("blue", 1) if needle == "text" else (0, 1)
                metas = ({}, {"choices": ["up", "down"]})
                records = [
                    make_needle(i, answer=answers[i], meta={**(metas[i] if needle == "text" else metas[1])})
                    for i in range(2)
                ]
                for record in records:
                    record["meta"]["context_length"] = length + 1
                write_lines(place_of_length / f"test_long_mr_{needle}_{kind}_{span}.jsonl", records)


def write_milebench(root: Path) -> None:
    for name in milebench.milebench.SETS:
        folder = root / "MileBench" / name
        for index in (1, 2):
            write_image(folder / f"images/{index}.png", seed=index)
        is_open = name in ("ALFRED", "CLEVR-Change", "IEdit", "Spot-the-Diff")
        is_needle = "NeedleInAHaystack" in name or name == "MMCoQA"
        choices = {} if is_open or is_needle else {"choice_list": ["cat", "dog", "cow"]}
        contexts = ("First {image#1} then {table#2}.", "No mark.", "One {image#1}.")
        data = [
            {
                "sample_id": index,
                "task_instruction_id": 0,
                "task_instance": {
                    "context": context,
                    "images_path": ["1.png", "2.png"][: 1 if index == 2 else 2],
                    "combined_1_images": ["2.png"],
                    **choices,
                },
                "response": "a red car" if is_open else "dog",
                "image_quantity_level": "Few",
            }
            for index, context in enumerate(contexts)
        ]
        instruction = ["Look."] if is_open else {"0": "Look."}
        kind = "open-ended" if is_open or is_needle else "multi-choice"
        meta = {"dataset": name, "question_type": kind, "task_instruction": instruction}
        write_json(folder / f"{name}.json", {"meta_data": meta, "data": data})
        if name == "ALFRED":
            write_image(folder / "combined_1_images/2.png", seed=2)


def write_longvqa(root: Path, lengths=("32k", "64k")) -> None:
    answers = {"svqa": "A", "tabfact": "Yes", "textcaps": "a red car on the road"}
    for name in longvqa.SETS:
        images = longvqa.find_images(name)
        write_image(root / images / "a/1.png", seed=1)
        for length in lengths:
            records = []
            for index in range(2):
                turns = [
                    {"from": "human", "value": "<image>\n<image>\nWhat?" if index else "What?"},
                    {"from": "gpt", "value": answers.get(name, "12")},
                ]
                record = {"id": index, "image": ["a/1.png"] * 2 if index else "a/1.png", "conversations": turns}
                records.append(record if index else {**record, "metadata": {"context_length": 30000}})
            write_lines(root / longvqa.find_annotation_file(name, length), records)


def write_mvbench(root: Path) -> None:
    for name, folder in mvbench.VIDEO_FOLDERS.items():
        place(root / "MVBench/video" / folder / "v")
        if name == "episodic_reasoning":
            for index in range(1, 13):
                write_image(root / "MVBench/video" / folder / f"v/{index:05d}.jpg", seed=index)
        else:
            write_video(root / "MVBench/video" / folder / "v.mp4")
        video = "v" if name == "episodic_reasoning" else "v.mp4"
        record = {"video": video, "question": "What?", "candidates": ["cut", 7], "answer": 7}
        bounds = {"start": 0.5, "end": 2.0} if name in ("action_sequence", "episodic_reasoning") else {}
        write_json(root / f"MVBench/json/{name}.json", [{**record, **bounds}, {**record, "answer": "cut"}])


def write_videomme(root: Path) -> None:
    options = ["A. a", "B. b", "C. c", "D. d"]
    records = []
    for number, duration in enumerate(("short", "medium", "long"), start=1):
        video = f"name{number}"
        write_video(root / f"Video-MME/data/{video}.mp4")
        entry = {"task_type": "Counting", "question": "Who?", "options": options, "answer": "B"}
        questions = [{"question_id": f"{number:03d}-{i}", **entry} for i in (1, 2)]
        record = {"video_id": f"{number:03d}", "videoID": video, "duration": duration, "domain": "Knowledge"}
        records.append({**record, "sub_category": "Biology", "questions": questions})
    write_json(root / "Video-MME/videomme.json", records)
    srt = "1\n00:00:00,000 --> 00:00:02,000\nHello <b>there</b>\n"
    place(root / "Video-MME/subtitle/name1.srt").write_text(srt, encoding="utf-8")


def write_longvideobench(root: Path) -> None:
    folder = root / "LongVideoBench"
    one = {"id": "v1_0", "video_id": "v1", "video_path": "v1.mp4", "question": "When 'hello' is said, what happens?"}
    one |= {"candidates": ["He sits.", "He runs.", "Nothing.", "é", "It ends."], "correct_choice": 1, "level": "L1"}
    one |= {"duration": 3.0, "duration_group": 15, "question_category": "T2E", "topic_category": "Recreational"}
    one |= {"subtitle_path": "v1_en.json", "starting_timestamp_for_subtitles": 10, "position": [4, 12]}
    other = {**one, "id": "v2_3", "video_path": "v2.mp4", "candidates": ["yes", "no"], "correct_choice": 0}
    other |= {"duration_group": 600, "subtitle_path": "v2_en.json", "starting_timestamp_for_subtitles": 0.0}
    write_json(folder / "lvb_val.json", [one, other])
    hidden = [{key: value for key, value in record.items() if key != "correct_choice"} for record in (one, other)]
    write_json(folder / "lvb_test_wo_gt.json", hidden)
    for name in ("v1", "v2"):
        write_video(folder / f"videos/{name}.mp4")
    spoken = [{"timestamp": [10.0, 11.5], "text": "hello"}, {"timestamp": [12.0, None], "text": "<image> and bye"}]
    write_json(folder / "subtitles/v1_en.json", spoken)
    clocked = [{"start": "00:00:00.500", "end": "00:00:00.900", "line": "short"}]
    write_json(folder / "subtitles/v2_en.json", clocked)


def write_mlvu(root: Path) -> None:
    for file in mlvu.CHOICE_FILES.values():
        write_video(root / f"MLVU/video/{file}/a.mp4")
        record = {"video": "a.mp4", "duration": 480.5, "question": "What?", "candidates": ["Red", "Blue", "2", "Both"]}
        kind = "findNeedle" if file == "2_needle" else file[2:]
        records = [{**record, "answer": answer, "question_type": kind} for answer in ("Blue", "Red")]
        if file == "2_needle":  # as published: an answer that is not among the candidates
            records.append({**records[0], "answer": "Green", "duration": 7200})
        write_json(root / f"MLVU/json/{file}.json", records)
    for name, file in mlvu.FREE_FILES.items():
        write_video(root / f"MLVU/video/{file}/s.mp4")
        record = {"video": "s.mp4", "duration": 6000.0, "question": "Please describe it.", "answer": "A man runs."}
        points = {"scoring_points": ["A man", "runs"]} if name == "sub_scene" else {}
        write_json(root / f"MLVU/json/{file}.json", [{**record, **points, "question_type": name}] * 2)
    write_video(root / "MLVU_Test/video/t.mp4")
    hidden = {"video": "t.mp4", "duration": 90, "question": "What?", "candidates": [*"abcdef"]}
    ids = [{**hidden, "question_id": f"AR_{index}", "question_type": "anomaly_reco"} for index in (0, 1)]
    write_json(root / "MLVU_Test/test_question.json", ids)


def write_lvbench(root: Path) -> None:
    text = "What year appears?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633"
    lines = []
    for number, key in enumerate(("Cm73ma6Ibcs", "-abc")):
        kinds = [["key information retrieval"], ["reasoning", "event understanding"]]
        answers = [
            {"uid": str(10 * number + i), "question": text, "answer": "DA"[i], "question_type": kinds[i]}
            for i in (0, 1)
        ]
        info = {"fps": 8, "duration_minutes": 45.5 + 30 * number, "resolution": {"width": 32, "height": 32}}
        lines.append({"key": key, "type": ("cartoon", "live")[number], "video_info": info, "qa": answers})
        write_video(root / "LVBench" / ("videos", "all_videos")[number] / f"{key}.mp4")
    write_lines(root / "LVBench/video_info.meta.jsonl", lines)


def write_vnbench(root: Path) -> None:
    options = ["dog", "train", "cow", "sheep"]
    records = []
    for kind in vnbench_types():
        video = f"v_{kind}.mp4"
        write_video(root / "VNBench/VNBench_new" / video)
        for number in range(4):
            turned = options[number:] + options[:number]
            record = {"video": f"./VNBench/{video}", "question": "Which comes first?", "options": turned, "gt": "dog"}
            record |= {"gt_option": "ADCB"[number], "needle_time": [1], "length": 10 if "ret" in kind else 30}
            records.append({**record, "type": kind, "try": number})
    write_json(root / "VNBench/VNBench-main-4try.json", records)


def vnbench_types() -> list[str]:
    endings = {"ret": ("edit", "insert1", "insert2"), "ord": ("edit", "insert1", "insert2")}
    endings["cnt"] = ("edit1", "insert", "edit2")
    return [f"{kind}_{ending}" for kind, names in endings.items() for ending in names]


def write_videomme_v2(root: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = root / "Video-MME-v2"
    structures = ("[1, [2, 3], 4]", None)
    rows = []
    for number, structure in enumerate(structures, start=1):
        video = f"{number:03d}"
        write_video(folder / f"video/{video}.mp4")
        for index in range(1, 5):
            row = {"video_id": video, "question_id": f"{video}-{index}", "question": "Who?", "url": "https://x"}
            row |= {
                "options": "\n".join(f"{letter}. {letter.lower()}" for letter in "ABCDEFGH"),
                "answer": "ABCH"[index - 1],
            }
            row |= {"group_type": "logic" if structure else "relevance", "group_structure": structure}
            row |= {"level": str(number) if index == 4 else None, "second_head": "Order", "third_head": "None"}
            rows.append(row)
    parquet.write_table(pyarrow.Table.from_pylist(rows), place(folder / "test.parquet"))
    words = [("Hello", 0.1, 0.4), ("there.", 0.4, 0.8), ("Bye", 2.5, 2.9)]
    write_lines(folder / "subtitle/001.jsonl", [{"text": t, "start_time": a, "end_time": b} for t, a, b in words])


VIDEO = (
    write_mvbench, write_videomme, write_longvideobench, write_mlvu, write_lvbench, write_vnbench, write_videomme_v2,
)  # fmt: skip
GENERAL = (write_vqa, write_scienceqa, write_pope, write_seed, write_mmmu, write_mmbench)


def write_all(root: Path) -> Path:
    """A data root with every benchmark."""
    long = (write_mm_niah, write_mm_niah_long, write_milebench, write_longvqa)
    for write in (*GENERAL, *long, *VIDEO):
        write(root)
    return root
