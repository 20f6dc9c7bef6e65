"""Original question files of VQA benchmarks -> the jsonl files that `eval.tasks` read.

For when the converted files that docs/evaluation.md links cannot be had. Every set whose original file is in its folder
is converted, in place; files that are there already are left alone.

    python -m eval.convert.vqa dataset/benchmark --out dataset/benchmark

    docvqa/val/val_v1.0.json                                       ->  docvqa/val.jsonl
    docvqa/test/test_v1.0.json                                     ->  docvqa/test.jsonl
    infographicsvqa/infographicsVQA_{val_v1.0_withQT,test_v1.0}.json   ->  infographicsvqa/{val,test}.jsonl
    chartqa/ChartQA Dataset/test/test_{human,augmented}.json       ->  chartqa/test_{human,augmented}.jsonl
    vqav2/v2_OpenEnded_mscoco_{val2014,test-dev2015}_questions.json    ->  vqav2/vqav2_{val,testdev}.jsonl
    okvqa/OpenEnded_mscoco_val2014_questions.json                  ->  okvqa/okvqa_val.jsonl
    textvqa/TextVQA_0.5.1_val.json                                 ->  textvqa/textvqa_val.jsonl (+ annotations)
    vizwiz/annotations/{val,test}.json                             ->  vizwiz/vizwiz_{val,test}.jsonl (+ annotations)
    gqa/testdev_balanced_questions.json                            ->  gqa/llava_gqa_testdev_balanced_qwen_format.jsonl
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.convert.command import run_converter
from eval.convert.files import write_line
from eval.core.output import open_result
from eval.core.records import read_json, require_field
from internvl.errors import DataError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Original:
    """One original file.

    Attributes:
        file: The file, below the data root.
        out: The jsonl file.
        list_records: Content -> records.
        find_image: Record -> picture, below the data root.
        fields: Field of the jsonl file -> field of a record.
        people: File for the answers of a record's people; None: there are none, or they are in a file of their own.
    """

    file: str
    out: str
    list_records: Callable[[Any], Iterable[Record]]
    find_image: Callable[[Record], str]
    fields: Mapping[str, str]
    people: str | None = None


def _listed(name: str) -> Callable[[Any], Iterable[Record]]:
    return lambda content: require_field(content, name, list)


def _numbered(content: Any) -> Iterator[Record]:
    return ({**record, "number": number} for number, record in enumerate(content))


def _named(folder: str, field: str, ending: str = "") -> Callable[[Record], str]:
    return lambda record: f"{folder}/{record[field]}{ending}"


def _coco(folder: str, split: str) -> Callable[[Record], str]:
    return lambda record: f"{folder}/COCO_{split}_{int(record['image_id']):012d}.jpg"


_DOCUMENT = {"question": "question", "question_id": "questionId"}
_COCO = {"question": "question", "question_id": "question_id"}
_CHART = {"question": "query", "answer": "label", "question_id": "number"}
_CHARTS = "chartqa/ChartQA Dataset/test"

ORIGINALS = (
    *(
        Original(
            f"docvqa/{split}/{split}_v1.0.json", f"docvqa/{split}.jsonl", _listed("data"),
            _named(f"docvqa/{split}", "image"), _DOCUMENT,
        )
        for split in ("val", "test")
    ),
    *(
        Original(
            f"infographicsvqa/infographicsVQA_{name}.json", f"infographicsvqa/{split}.jsonl", _listed("data"),
            _named("infographicsvqa/infographicsvqa_images", "image_local_name"), _DOCUMENT,
        )
        for split, name in (("val", "val_v1.0_withQT"), ("test", "test_v1.0"))
    ),
    *(
        Original(
            f"{_CHARTS}/test_{part}.json", f"chartqa/test_{part}.jsonl", _numbered,
            _named(f"{_CHARTS}/png", "imgname"), _CHART,
        )
        for part in ("human", "augmented")
    ),
    Original(
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", "vqav2/vqav2_val.jsonl", _listed("questions"),
        _coco("vqav2/val2014", "val2014"), _COCO,
    ),
    Original(
        "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json", "vqav2/vqav2_testdev.jsonl", _listed("questions"),
        _coco("vqav2/test2015", "test2015"), _COCO,
    ),
    Original(
        "okvqa/OpenEnded_mscoco_val2014_questions.json", "okvqa/okvqa_val.jsonl", _listed("questions"),
        _coco("okvqa/val2014", "val2014"), _COCO,
    ),
    Original(
        "textvqa/TextVQA_0.5.1_val.json", "textvqa/textvqa_val.jsonl", _listed("data"),
        _named("textvqa/train_images", "image_id", ".jpg"), _COCO, "textvqa/textvqa_val_annotations.json",
    ),
    *(
        Original(
            f"vizwiz/annotations/{split}.json", f"vizwiz/vizwiz_{split}.jsonl", _numbered,
            _named(f"vizwiz/{split}", "image"),
            {"question": "question", "question_id": "number"},
            "vizwiz/vizwiz_val_annotations.json" if split == "val" else None,
        )
        for split in ("val", "test")
    ),
    Original(
        "gqa/testdev_balanced_questions.json", "gqa/llava_gqa_testdev_balanced_qwen_format.jsonl",
        lambda content: [{**record, "number": key} for key, record in content.items()],
        _named("gqa/images", "imageId", ".jpg"),
        {"question": "question", "answer": "answer", "question_id": "number"},
    ),
)  # fmt: skip


def convert(folder: Path, out: Path) -> dict[str, int]:
    """Convert every original file that is there and has no jsonl file yet.

    Args:
        folder: Data root with the original files.
        out: Data root to write into.

    Returns:
        Number of questions by file.

    Raises:
        DataError: There is nothing to convert, or a record is wrong.
        EvalError: A file cannot be written.
    """
    found = [original for original in ORIGINALS if (folder / original.file).is_file()]
    if not found:
        names = "\n  ".join(original.file for original in ORIGINALS)
        raise DataError(f"no original file below {folder.absolute()}; expected one of\n  {names}")
    return {
        original.out: _convert_file(original, folder, out) for original in found if not (out / original.out).exists()
    }


def _convert_file(original: Original, folder: Path, out: Path) -> int:
    path = folder / original.file
    content = read_json(path, object)
    count = 0
    people: list[dict[str, Any]] = []
    with open_result(out / original.out) as file:
        for count, record in enumerate(_read(original, content, path), start=1):
            try:
                line = {name: record[field] for name, field in original.fields.items()}
                write_line(file, {"image": f"data/{original.find_image(record)}", **line})
                if original.people is not None:
                    people.append(_list_people(line["question_id"], record["answers"]))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"the record has no usable field {error}", source=str(path), row=count - 1) from error
        if original.people is not None:
            _write_people(out / original.people, people)
    return count


def _read(original: Original, content: Any, path: Path) -> Iterable[Record]:
    try:
        return original.list_records(content)
    except (DataError, TypeError, AttributeError) as error:
        raise DataError(f"the file is not of the published form ({error})", source=str(path)) from error


def _list_people(question_id: Any, answers: Sequence[Any]) -> dict[str, Any]:
    texts = [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]
    return {"question_id": question_id, "answers": [{"answer": text} for text in texts]}


def _write_people(path: Path, people: Sequence[Record]) -> None:
    if not path.exists():
        with open_result(path) as file:
            file.write((json.dumps({"annotations": people}, ensure_ascii=False) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_converter(convert, name="vqa", description=__doc__, out="dataset/benchmark", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
