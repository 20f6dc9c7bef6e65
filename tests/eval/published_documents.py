"""Long-context and document benchmarks in their published forms, as `published.py` has the others."""

from pathlib import Path

from tests.eval.published import write_image, write_json, write_lines

PASSAGES = [{"doc_id": f"d{i}", "title": f"Title {i}", "text": f"Text of {i}."} for i in range(3)]


def write_mmlongbench(root: Path, lengths=(8, 16, 32, 64, 128), *, num=3) -> None:
    """Three questions per set (six lines where there are two depths), with every answer format of documents."""
    images = root / "MMLongBench/mmlb_image"
    names = [f"mm-niah/{i}.jpg" for i in range(4)]
    for index, name in enumerate(names):
        write_image(images / name, seed=index)
    pages = [f"gov-report/bg_pdf_img/gao-18-107/gao-18-107_page{i}.jpg" for i in range(3)]
    documents = [f"mmlongbench-doc/a_long_document_name/a_long_document_name_page{i}.jpg" for i in range(3)]
    for index, page in enumerate([*pages, *documents]):
        write_image(images / page, seed=index)
    for length in lengths:
        folder = root / "MMLongBench/mmlb_data"
        _write_rag(folder / "vrag", f"K{length}", names, num)
        _write_needles(folder / "NIAH", f"K{length}", names, num)
        _write_classes(folder / "ICL", f"K{length}", names, num)
        _write_pages(folder, f"K{length}", pages, documents, num)


def write_documents(root: Path) -> None:
    """All of these benchmarks; MMLongBench at its shortest length."""
    write_mmlongbench(root, (8,))
    for write in (write_mmlongbench_doc, write_longdocurl, write_slidevqa, write_dude):
        write(root)


def write_mmlongbench_doc(root: Path) -> None:
    """A question of every format about two documents of twelve pages and one."""
    folder = root / "MMLongBench-Doc"
    for index in range(12):
        write_image(folder / f"pages/report.v2/page-{index + 1}.png", seed=index)
    write_image(folder / "pages/one/page-1.png")
    rows = (
        ("report.v2.pdf", "5", "Int", "[3]", "['Chart']"),
        ("report.v2.pdf", "2.5%", "Float", "[3, 12]", "['Table', 'Chart']"),
        ("report.v2.pdf", "Red car", "Str", "[12]", "['Figure']"),
        ("one.pdf", "['White', '10%']", "List", "[1]", "['Pure-text (Plain-text)']"),
        ("one.pdf", "Not answerable", "None", "[]", "[]"),
    )
    keys = ("doc_id", "answer", "answer_format", "evidence_pages", "evidence_sources")
    records = [dict(zip(keys, row, strict=True)) for row in rows]
    write_json(
        folder / "samples.json",
        [{**record, "doc_type": "Guidebook", "question": f"What is it, {i}?"} for i, record in enumerate(records)],
    )


def write_longdocurl(root: Path) -> None:
    """A question of every format about three pages out of many."""
    for index in (41, 42, 43):
        write_image(root / f"LongDocURL/pdf_pngs/4000-4999/4055/4055915_{index}.png", seed=index)
    answers = ((5, "Integer"), ("2.5 kg", "Float"), ("Merger Transaction", "String"), ("['a b', 'c d']", "List"))
    answers += ((["page one", "page two"], "List"), ("Not answerable", "None"))
    records = [
        {"question_id": f"free_{i}", "doc_no": "4055915", "total_pages": 84, "start_end_idx": [42, 44],
         "question_type": "calculate", "question": f"What is it, {i}?", "answer": answer, "detailed_evidences": "",
         "evidence_pages": [42, 44][: i % 2 + 1], "evidence_sources": ["Table", "Text"][: i % 2 + 1],
         "answer_format": kind, "task_tag": ("Reasoning", "Locating")[i % 2],
         "images": [f"/data/pdf_pngs/4000-4999/4055/4055915_{page}.png" for page in (41, 42, 43)],
         "pdf_path": "/data/4055915.pdf"}
        for i, (answer, kind) in enumerate(answers)
    ]  # fmt: skip
    write_lines(root / "LongDocURL/LongDocURL_public.jsonl", records)


def write_slidevqa(root: Path) -> None:
    """Three questions about a deck of twenty slides."""
    names = [f"deck-{index}-1024.jpg" for index in range(1, 21)]
    answers = (("12 cars", [2]), ("Paris", [1, 20]), (7, [20]))
    for split in ("dev", "test"):
        for index, name in enumerate(names):
            write_image(root / f"SlideVQA/images/{split}/a-deck/{name}", seed=index)
        records = [
            {"deck_name": "a-deck", "deck_url": "https://x/a-deck", "qa_id": i, "answer": answer,
             "image_urls": [f"https://image.x/95/{name}" for name in names], "arithmetic_expression": "None",
             "question": "In which town, or how many cars?", "evidence_pages": pages,
             "reasoning_type": "Single-Hop", "answer_type": "Single-Span"}
            for i, (answer, pages) in enumerate(answers)
        ]  # fmt: skip
        write_lines(root / f"SlideVQA/annotations/qa/{split}.jsonl", records)


def write_dude(root: Path) -> None:
    """A question of every type about a document of twelve pages, beside those of other splits."""
    for index in range(12):
        write_image(root / f"DUDE/images/val/b0_{index}.jpg", seed=index)
    answers = (
        (["Paris"], "extractive"),
        (["Yes"], "abstractive"),
        (["red", "light blue"], "list/extractive"),
        (["2", "3"], "list/abstractive"),
        ([], "not-answerable"),
    )
    records = [
        {"questionId": f"b0_{i}", "question": f"What is it, {i}?", "answers": texts, "answer_type": kind,
         "answers_page_bounding_boxes": [], "answers_variants": [], "docId": "b0", "data_split": "val"}
        for i, (texts, kind) in enumerate(answers)
    ]  # fmt: skip
    hidden = {"questionId": "t0_0", "question": "What?", "docId": "t0", "data_split": "test"}
    taught = {**records[0], "questionId": "a0_0", "docId": "a0", "data_split": "train"}
    content = {"dataset_name": "DUDE Dataset", "dataset_version": "1.0.7", "data": [hidden, taught, *records]}
    write_json(root / "DUDE/2023-03-23_DUDE_gt_test_PUBLIC.json", content)


def _write_rag(folder: Path, length: str, images: list[str], num: int) -> None:
    for name, depths in (("infoseek", 3), ("viquae", 6)):
        records = [
            {"id": f"{name}_{i}", "question": "Where is it?", "image": images[i % 4], "answer": ["Paris", "City"],
             "entity_id": "Q1", "entity_text": "x", "positive_ctxs": PASSAGES[:1], "ctxs": PASSAGES, "depth": depth,
             "length": 8000}
            for depth in (0.0, 0.4) for i in range(num)
        ]  # fmt: skip
        records.append({**records[0], "id": "quoted", "image": 'a "b".jpg'})
        write_lines(folder / f"{name}_{length}_dep{depths}.jsonl", records)


def _write_needles(folder: Path, length: str, images: list[str], num: int) -> None:
    for name, depths in (("single", 6), ("multi", 3)):
        records = [
            {
                "id": f"vh_{i}",
                "question": "Is there a dog?",
                "answer": ("Yes", "No")[i % 2],
                "ctxs": images,
                "depth": 1.0,
            }
            for i in range(num)
        ]
        write_lines(folder / f"vh_{name}_test_1000_{length}_dep{depths}.jsonl", records)
    passages = [{"type": "text", "text": "Words <image> and words.", "nid": None}, {"type": "image", "text": "<image>"}]
    for kind in ("retrieval", "counting", "reasoning"):
        base = {"question": "What is the secret?", "ctxs": passages, "positive_ctxs": passages[:1], "length": 7900}
        answers = ([2, 1], [0]) if kind == "counting" else ("blue", ["blue", "navy"])
        text = [
            {**base, "id": f"{kind}_{i}", "answer": answers[i % 2], "image_list": images[:2], "depth": [0.1, 0.9]}
            for i in range(num)
        ]
        write_lines(folder / f"{kind}-text_test_{length}_dep{6 if kind == 'retrieval' else 3}.jsonl", text)
        if kind == "counting":
            text = [{**r, "question": "How many <image>?", "needle_image_list": images[2:3]} for r in text]
            write_lines(folder / f"counting-image_test_{length}_dep3.jsonl", text)
        else:
            options = [{**r, "answer": i % 2, "choices_image": images[2:]} for i, r in enumerate(text)]
            write_lines(folder / f"{kind}-image_test_{length}_dep6.jsonl", options)


def _write_classes(folder: Path, length: str, images: list[str], num: int) -> None:
    for name in ("cars196", "food101", "inat2021", "sun397"):
        rounds = [[{"id": c, "name": f"class {c}", "image": images[c]} for c in range(3)] for _ in range(2)]
        unknown = [{"id": f"{name}_{i}", "name": "class", "image": images[3], "answer": i % 3} for i in range(num)]
        domain = {"exemplar_list": [rounds, rounds[:1]], "all_token_count": [1, 2], "test_example": unknown}
        write_json(folder / f"{name}_{length}.json", {"all": domain})


def _write_pages(folder: Path, length: str, pages: list[str], documents: list[str], num: int) -> None:
    sections = [{"section_title": "What GAO Found", "paragraphs": ["Costs rose.", "Delays grew."]}]
    for name, summary in (("gov", sections), ("lexsum", "A case was dismissed.")):
        records = [{"id": f"{name}_{i}", "image_list": pages[: i % 3 + 1], "summary": summary} for i in range(num)]
        write_lines(folder / f"summ/{name}_{length}.jsonl", records)
    answers = (("5", "Integer"), ("2.5", "Float"), ("red car", "String"), ('["a", "b"]', "List"))
    answers += (("Not answerable", "None"),)
    for name in ("longdocurl", "mmlongdoc", "slidevqa"):
        records = [
            {"id": f"{name}_{i}", "doc_name": "a_long_document_name", "question": "What is it?",
             "answer": answers[i % 5][0], "answer_format": answers[i % 5][1], "page_list": documents,
             "ans_page_list": [1], "answer_sources": ["Text"]}
            for i in range(num)
        ]  # fmt: skip
        write_lines(folder / f"documentQA/{name}_{length}.jsonl", records)
