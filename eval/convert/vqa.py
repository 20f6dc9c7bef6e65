"""Original question files of VQA benchmarks -> the jsonl files that `eval.tasks` reads.

For users who cannot get the converted files that docs/evaluation.md links. Every set whose original file is in its
folder is converted in place. Files that exist already are left alone.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.convert.command import run_converter
from eval.convert.files import write_line
from eval.core.output import open_result, write_result
from eval.core.records import read_json
from internvl.command import command
from internvl.errors import DataError

Record = Mapping[str, object]


@dataclass(frozen=True)
class Original:
    """One original file."""

    file: str  # below the data root
    out: str  # likewise, the jsonl file
    key: str  # where the file keeps its records; empty: the file is the list of records, or an object of them
    image: str  # path of a picture below the data root, with fields of the record in braces
    # Field of the jsonl file -> field of a record. `number` is the record's place in its list, or its key.
    fields: Mapping[str, str]
    # File for the answers of a record's people; None: there are none, or they are published separately.
    people: str | None = None


_DOCUMENT = {"question": "question", "question_id": "questionId"}
_COCO = {"question": "question", "question_id": "question_id"}
_CHART = {"question": "query", "answer": "label", "question_id": "number"}
_PHOTO = {"question": "question", "question_id": "number"}
_SCENE = {"question": "question", "answer": "answer", "question_id": "number"}
_POSTERS, _POSTER = "infographicsvqa/infographicsVQA", "infographicsvqa/infographicsvqa_images/{image_local_name}"
_CHARTS = "chartqa/ChartQA Dataset/test"
_COCO_QUESTIONS = "OpenEnded_mscoco_{}_questions.json"
_COCO_IMAGE = "/COCO_{}_{{image_id:0>12}}.jpg"
_VAL, _TEST = (_COCO_IMAGE.format(split) for split in ("val2014", "test2015"))

ORIGINALS = (
    Original("docvqa/val/val_v1.0.json", "docvqa/val.jsonl", "data", "docvqa/val/{image}", _DOCUMENT),
    Original("docvqa/test/test_v1.0.json", "docvqa/test.jsonl", "data", "docvqa/test/{image}", _DOCUMENT),
    Original(f"{_POSTERS}_val_v1.0_withQT.json", "infographicsvqa/val.jsonl", "data", _POSTER, _DOCUMENT),
    Original(f"{_POSTERS}_test_v1.0.json", "infographicsvqa/test.jsonl", "data", _POSTER, _DOCUMENT),
    Original(f"{_CHARTS}/test_human.json", "chartqa/test_human.jsonl", "", _CHARTS + "/png/{imgname}", _CHART),
    Original(f"{_CHARTS}/test_augmented.json", "chartqa/test_augmented.jsonl", "", _CHARTS + "/png/{imgname}", _CHART),
    Original(
        f"vqav2/v2_{_COCO_QUESTIONS.format('val2014')}", "vqav2/vqav2_val.jsonl", "questions",
        f"vqav2/val2014{_VAL}", _COCO,
    ),
    Original(
        f"vqav2/v2_{_COCO_QUESTIONS.format('test-dev2015')}", "vqav2/vqav2_testdev.jsonl", "questions",
        f"vqav2/test2015{_TEST}", _COCO,
    ),
    Original(
        f"okvqa/{_COCO_QUESTIONS.format('val2014')}", "okvqa/okvqa_val.jsonl", "questions",
        f"okvqa/val2014{_VAL}", _COCO,
    ),
    Original(
        "textvqa/TextVQA_0.5.1_val.json", "textvqa/textvqa_val.jsonl", "data",
        "textvqa/train_images/{image_id}.jpg", _COCO, "textvqa/textvqa_val_annotations.json",
    ),
    Original(
        "vizwiz/annotations/val.json", "vizwiz/vizwiz_val.jsonl", "",
        "vizwiz/val/{image}", _PHOTO, "vizwiz/vizwiz_val_annotations.json",
    ),
    Original("vizwiz/annotations/test.json", "vizwiz/vizwiz_test.jsonl", "", "vizwiz/test/{image}", _PHOTO),
    Original(
        "gqa/testdev_balanced_questions.json", "gqa/llava_gqa_testdev_balanced_qwen_format.jsonl", "",
        "gqa/images/{imageId}.jpg", _SCENE,
    ),
)  # fmt: skip


def convert(folder: Path, out: Path) -> dict[str, int]:
    """Convert every original file below the data root `folder` that has no jsonl file below `out` yet.

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
    row = -1
    people: list[Record] = []
    with open_result(out / original.out) as file:
        for row, record in enumerate(_list_records(original, path)):
            try:
                line = {name: record[field] for name, field in original.fields.items()}
                write_line(file, {"image": f"data/{original.image.format_map(record)}", **line})
                if original.people is not None:
                    people.append(_list_people(line["question_id"], record["answers"]))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"the record has no usable field {error}", source=str(path), row=row) from error
    if original.people is not None and not (out / original.people).exists():
        write_result(out / original.people, json.dumps({"annotations": people}, ensure_ascii=False) + "\n")
    return row + 1


def _list_records(original: Original, path: Path) -> Iterator[Record]:
    content: Any = read_json(path, object)
    try:
        entries = content[original.key] if original.key else content
        for number, record in entries.items() if isinstance(entries, dict) else enumerate(entries):
            yield {**record, "number": number}
    except KeyError as error:
        raise DataError(f"the field {error} is missing", source=str(path)) from error
    except (TypeError, AttributeError) as error:
        raise DataError(f"the file does not have its published form ({error})", source=str(path)) from error


def _list_people(question_id: object, answers: object) -> Record:
    if not isinstance(answers, list):
        raise TypeError("'answers'")
    texts = [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]
    return {"question_id": question_id, "answers": [{"answer": text} for text in texts]}


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_converter(convert, name="vqa", description=__doc__, out="dataset/benchmark", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
