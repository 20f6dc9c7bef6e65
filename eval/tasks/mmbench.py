"""MMBench in English and Chinese, and CCBench (Liu et al. 2023, arXiv 2307.06281).

    DATA_ROOT/mmbench/mmbench_dev_20230712.tsv           index, question, hint, A-E, answer, category, image (base64)
    DATA_ROOT/mmbench/mmbench_{dev_cn,test_en,test_cn}_20231003.tsv
    DATA_ROOT/mmbench/CCBench_legacy.tsv

The score is that of circular evaluation where the file has rotations of its questions. The answers of the test splits
are not public: the run leaves a table with predictions (the server takes it as xlsx).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from eval.core.records import require_field
from eval.core.sample import PackedImage, Prediction, Sample
from eval.core.task import Scored, Task, Upload
from eval.metrics import choice, mmbench
from eval.metrics.protocol import Protocol
from eval.tasks.questions import OPTION_SENTENCE, build_rows, collect_tasks, estimate_cost, put_images_first
from eval.tasks.tables import find_content, read_table
from internvl.errors import DataError

VERSION = 1
SOURCE = "https://github.com/open-compass/MMBench"
CHINESE_SENTENCE = "请直接回答选项字母。"
LETTERS = "ABCDE"
MAX_NUM = 6
_FIELDS = ("category", "l2-category", "split")


def read_samples(data_root: Path, *, annotation: Path, sentence: str) -> list[Sample]:
    """All rows of a file. Raises DataError for a bad one."""
    path = data_root / annotation
    rows = read_table(path)
    by_index = {row.get("index", ""): row for row in rows}
    has_answers = any("answer" in row for row in rows)

    def build(number: int, row: dict[str, Any]) -> Sample:
        index = require_field(row, "index", str)
        if not index.isdecimal():
            raise DataError(f"the index is {index!r}, expected a whole number")
        options = {letter: row[letter] for letter in LETTERS if letter in row}
        lines = [row["hint"]] if "hint" in row else []
        lines += [require_field(row, "question", str), *(f"{letter}. {text}" for letter, text in options.items())]
        question = "\n".join([*lines, sentence])
        fields = {name: row[name] for name in _FIELDS if name in row}
        return Sample(
            id=index,
            prompt=put_images_first(question, 1),
            images=(PackedImage(f"{path}, index {index}", find_content(row, by_index)),),
            answer=_read_answer(row, options) if has_answers else None,
            metadata={
                "index": index,
                "question": question,
                "columns": {"question": row["question"], **options},
                "chance": 1 / max(1, len(options)),
                **fields,
            },
            cost=estimate_cost(question, MAX_NUM + 1),
        )

    return build_rows(path, rows, build=build)


def _read_answer(row: Mapping[str, str], options: Mapping[str, str]) -> dict[str, Any]:
    answer = row.get("answer")
    if answer not in options:
        raise DataError(f"the answer is {answer!r}, expected one of {', '.join(options)}")
    return {"letter": answer, "options": dict(options)}


def _score(answer: Any, response: str, protocol: str) -> float:
    return choice.score(answer["letter"], response, options=answer["options"], protocol=cast(Protocol, protocol))


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, Any]:
    """Circular accuracy over questions, with the plain accuracy of all passes beside it."""
    rows = [(item.metadata["index"], item.score, item.metadata) for item in scored]
    numbers = mmbench.summarise(rows)
    return {**numbers, "score": numbers["accuracy"]}


def _render_upload(predictions: Sequence[Prediction]) -> str:
    names = ["index", "question", *LETTERS, "prediction"]
    table = io.StringIO()
    writer = csv.DictWriter(table, names, delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    for prediction in predictions:
        columns = prediction.metadata["columns"]
        letter = choice.cut_letter(prediction.response, {k: v for k, v in columns.items() if k in LETTERS})
        writer.writerow({"index": prediction.id, **columns, "prediction": letter})
    return table.getvalue()


def _make(name: str, file: str, sentence: str) -> Task:
    annotation = Path("mmbench", file)
    return Task(
        name=name,
        version=VERSION,
        source=SOURCE,
        annotation=annotation,
        read_samples=partial(read_samples, annotation=annotation, sentence=sentence),
        max_new_tokens=100,
        max_num=MAX_NUM,
        score_answer=_score,
        protocols=("official", "upstream"),
        aggregate=aggregate,
        upload=Upload("upload.tsv", _render_upload) if "test" in name else None,
    )


FAMILY = collect_tasks(
    _make("mmbench/dev-en", "mmbench_dev_20230712.tsv", OPTION_SENTENCE),
    _make("mmbench/dev-cn", "mmbench_dev_cn_20231003.tsv", CHINESE_SENTENCE),
    _make("mmbench/test-en", "mmbench_test_en_20231003.tsv", OPTION_SENTENCE),
    _make("mmbench/test-cn", "mmbench_test_cn_20231003.tsv", CHINESE_SENTENCE),
)
CCBENCH_FAMILY = collect_tasks(_make("ccbench/dev", "CCBench_legacy.tsv", CHINESE_SENTENCE))
