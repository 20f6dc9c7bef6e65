"""MMBench in English and Chinese (Liu et al. 2023, arXiv 2307.06281).

    DATA_ROOT/mmbench/mmbench_dev_20230712.tsv           index, question, hint, A-E, answer, category, image (base64)
    DATA_ROOT/mmbench/mmbench_{dev_en,dev_cn,test_en,test_cn}_20231003.tsv

The score is that of circular evaluation where the file has rotations of its questions. The answers of the test splits
are not public; a run leaves a table with predictions, as upload.tsv and, with openpyxl, as upload.xlsx.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eval.core.data_root import Root
from eval.core.fields import parse_rows
from eval.core.sample import PackedImage, Prediction, Sample
from eval.core.task import Scored, Task, Upload
from eval.metrics import choice, mmbench
from eval.metrics.protocol import PROTOCOLS, Protocol
from eval.tasks.questions import OPTION_SENTENCE, collect_tasks, estimate_cost, put_images_first
from eval.tasks.tables import find_content, read_table, render_table, render_workbook
from internvl.errors import DataError

CHINESE_SENTENCE = "请直接回答选项字母。"
LETTERS = "ABCDE"
MAX_NUM = 6
_KEPT = ("category", "l2-category", "split")


@dataclass(frozen=True)
class _Row:
    index: str
    question: str
    image: str = ""


def read_samples(data_root: Root, *, annotation: Path, sentence: str) -> list[Sample]:
    """All rows of a file. Raises DataError for a bad one."""
    path = data_root / annotation
    rows = read_table(path)
    by_index = {row.get("index", ""): row for row in rows}
    has_answers = any("answer" in row for row in rows)

    def build(number: int, row: _Row) -> Sample:
        cells = rows[number]
        if not row.index.isdecimal():
            raise DataError(f"the index is {row.index!r}, expected a whole number")
        options = {letter: cells[letter] for letter in LETTERS if letter in cells}
        lines = [cells["hint"]] if "hint" in cells else []
        lines += [row.question, *(f"{letter}. {text}" for letter, text in options.items()), sentence]
        question = "\n".join(lines)
        return Sample(
            id=row.index,
            prompt=put_images_first(question, 1),
            images=(PackedImage(f"{path}, index {row.index}", find_content(row.image, by_index)),),
            answer=_read_answer(cells.get("answer"), options) if has_answers else None,
            metadata={
                "index": row.index,
                "question": question,
                "columns": {"question": row.question, **options},
                "chance": 1 / max(1, len(options)),
                **{name: cells[name] for name in _KEPT if name in cells},
            },
            cost=estimate_cost(question, MAX_NUM + 1),
        )

    return parse_rows(path, rows, _Row, build)


def _read_answer(letter: str | None, options: Mapping[str, str]) -> choice.Answer:
    if letter is None or letter not in options:
        raise DataError(f"the answer is {letter!r}, expected one of {', '.join(options)}")
    return {"letter": letter, "options": dict(options)}


def _score(answer: choice.Answer, response: str, protocol: Protocol) -> float:
    """The letter, of one pass of a question."""
    return choice.score(answer["letter"], response, options=answer["options"], protocol=protocol)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Circular accuracy over questions, and the plain accuracy of all passes."""
    numbers = mmbench.summarise([(item.metadata["index"], item.score, item.metadata) for item in scored])
    return {**numbers, "score": numbers["accuracy"]}


def _list_predictions(predictions: Sequence[Prediction]) -> list[list[str]]:
    """The table that the server accepts, the header first."""
    rows = [["index", "question", *LETTERS, "prediction"]]
    for prediction in predictions:
        columns = prediction.metadata["columns"]
        letter = choice.cut_letter(prediction.response, {k: v for k, v in columns.items() if k in LETTERS})
        cells = {"index": prediction.id, **columns, "prediction": letter}
        rows.append([cells.get(name, "") for name in rows[0]])
    return rows


UPLOADS = (
    Upload("upload.tsv", lambda predictions: render_table(_list_predictions(predictions))),
    Upload("upload.xlsx", lambda predictions: render_workbook(_list_predictions(predictions))),
)


def make_table_task(name: str, file: str, sentence: str) -> Task:
    """A task on one file; `sentence` asks for the letter."""
    annotation = Path("mmbench", file)
    return Task(
        name=name,
        version=1,
        source="https://github.com/open-compass/MMBench",
        annotation=annotation,
        read_samples=partial(read_samples, annotation=annotation, sentence=sentence),
        max_new_tokens=100,
        max_num=MAX_NUM,
        score_answer=_score,
        protocols=PROTOCOLS,
        aggregate=aggregate,
        uploads=UPLOADS if "test" in name else (),
    )


_ALL = collect_tasks(
    [
        make_table_task("mmbench/dev-en", "mmbench_dev_20230712.tsv", OPTION_SENTENCE),
        make_table_task("mmbench/dev-cn", "mmbench_dev_cn_20231003.tsv", CHINESE_SENTENCE),
        make_table_task("mmbench/test-en", "mmbench_test_en_20231003.tsv", OPTION_SENTENCE),
        make_table_task("mmbench/test-cn", "mmbench_test_cn_20231003.tsv", CHINESE_SENTENCE),
        make_table_task("mmbench/dev-en-20231003", "mmbench_dev_en_20231003.tsv", OPTION_SENTENCE),
    ]
)
# The last one is a later version of the first, so it must be asked for by name.
FAMILY = replace(_ALL, names=_ALL.names[:-1])
