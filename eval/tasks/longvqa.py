"""Long-VQA, V2PE's own: 17 sets of questions about one picture among many, 32k to 64k tokens (arXiv 2412.09616).

    DATA_ROOT/V2PE-Data/val/long_vqa_32k/val_long_vqa_SET_16_32.jsonl     also 32_40 (40k) ... 56_64 (64k)
    DATA_ROOT/V2PE-Data/image/long_vqa/{image,paste}/SET/val/             pictures

The first turn of a record's conversation is the prompt as it is sent, the second is the answer. The metrics differ from
those of the original sets, and `upstream` rewrites answers, so the numbers show trends only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_record, parse_rows
from eval.core.records import read_records
from eval.core.sample import Sample
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import longvqa
from eval.metrics.estimate import bootstrap_stderr
from eval.metrics.lexicon import Lexicon, load_lexicon
from eval.metrics.protocol import PROTOCOLS, Protocol
from eval.tasks.questions import Results, average_tasks, estimate_cost, put_images_first
from internvl.errors import DataError

FOLDER = Path("V2PE-Data")
LENGTHS = {"32k": "16_32", "40k": "32_40", "48k": "40_48", "56k": "48_56", "64k": "56_64"}
MAX_NUM = 12
MAX_NEW_TOKENS = {
    **dict.fromkeys(("clevr", "dvqa", "gqa", "svqa", "tabfact"), 8),
    **dict.fromkeys(("chartqa", "deepform", "docvqa", "infovqa", "kleistercharity", "vizwiz"), 32),
    **dict.fromkeys(("textcaps", "textvqa"), 64),
    **dict.fromkeys(("ocrvqa", "wikitablequestions"), 128),
    "okvqa": 16,
    "visualmrc": 256,
}
SETS = tuple(sorted(MAX_NEW_TOKENS))
_OWN_PICTURES = ("deepform", "docvqa", "infovqa", "kleistercharity", "svqa", "visualmrc")
_CORPUS_METRICS = ("F1", "BLEU4")


@dataclass(frozen=True)
class _Turn:
    value: str


@dataclass(frozen=True)
class _Metadata:
    context_length: float | None = None


@dataclass(frozen=True)
class _Record:
    id: str | int
    image: str | list[str]
    conversations: list[object]
    metadata: _Metadata = _Metadata()


def read_samples(data_root: Root, *, annotation: Path, images: Path) -> list[Sample]:
    """All samples of a file. Raises DataError for a bad record."""
    path, folder = data_root / annotation, data_root / images

    def build(row: int, record: _Record) -> Sample:
        names = [record.image] if isinstance(record.image, str) else record.image
        return _build(record, tuple(find_media(name, data_root, (folder,)) for name in names))

    return parse_rows(path, read_records(path), _Record, build)


def _build(record: _Record, images: tuple[Path, ...]) -> Sample:
    if len(record.conversations) < 2:
        raise DataError(f"conversations has {len(record.conversations)} turns, expected a question and an answer")
    question, answer = (parse_record(_Turn, turn, place=("conversations",)).value for turn in record.conversations[:2])
    length = record.metadata.context_length
    return Sample(
        id=str(record.id),
        prompt=put_images_first(question, len(images)),
        images=images,
        answer=answer,
        metadata={"id": str(record.id), "question": question[-500:], "context_length": length},
        cost=estimate_cost(question, len(images) * (MAX_NUM + 1)) if length is None else float(length),
    )


@cache
def _read_lexicon() -> Lexicon:
    return load_lexicon()


def _score(answer: str, response: str, protocol: Protocol, *, set_name: str) -> float:
    return longvqa.score(answer, response, task=set_name, protocol=protocol, lexicon=_read_lexicon())


def _aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None, *, set_name: str) -> dict[str, object]:
    """Name of the metric; where it belongs to the whole set, its value is the score."""
    metric, lexicon = longvqa.find_metric(set_name), _read_lexicon()
    numbers: dict[str, object] = {"metric": metric, "lexicon": lexicon.name}
    if metric not in _CORPUS_METRICS:
        return numbers

    def compute(items: Sequence[Scored]) -> float:
        rows = [(item.metadata["id"], item.answer, item.response) for item in items]
        return longvqa.score_corpus(rows, task=set_name, protocol=items[0].protocol, lexicon=lexicon)

    return {**numbers, "score": compute(scored), "stderr": bootstrap_stderr(scored, compute, num_draws=50)}


def find_annotation_file(set_name: str, length: str) -> Path:
    """The questions of a set and length, below the data root."""
    return FOLDER / "val" / f"long_vqa_{length}" / f"val_long_vqa_{set_name}_{LENGTHS[length]}.jsonl"


def find_images(set_name: str) -> Path:
    """The pictures of a set, below the data root."""
    kind = "image" if set_name in _OWN_PICTURES else "paste"
    return FOLDER / "image" / "long_vqa" / kind / set_name / "val"


def make_task(name: str, prompts: str) -> Task | None:
    """The task of a set and length, for example `chartqa-32k`."""
    match = re.fullmatch(r"(\w+)-(\d+k)", name)
    if match is None or match[1] not in SETS or match[2] not in LENGTHS:
        return None
    set_name, length = match[1], match[2]
    annotation = find_annotation_file(set_name, length)
    return Task(
        name=f"longvqa/{name}",
        version=1,
        source="https://huggingface.co/datasets/OpenGVLab/V2PE-Data",
        annotation=annotation,
        read_samples=partial(read_samples, annotation=annotation, images=find_images(set_name)),
        max_new_tokens=MAX_NEW_TOKENS[set_name],
        max_num=MAX_NUM,
        score_answer=partial(_score, set_name=set_name),
        protocols=PROTOCOLS,
        aggregate=partial(_aggregate, set_name=set_name),
    )


def summarise(results: Results) -> dict[str, object]:
    """Mean over the sets of every length that is complete, by protocol."""
    means = {length: average_tasks(results, [f"{name}-{length}" for name in SETS]) for length in LENGTHS}
    return {length: mean for length, mean in means.items() if mean}


FAMILY = TaskFamily(
    names=tuple(f"{set_name}-{length}" for length in LENGTHS for set_name in SETS), make=make_task, summarise=summarise
)
