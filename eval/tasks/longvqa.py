"""Long-VQA, V2PE's own: 17 sets of questions about one picture among many, 32k to 64k tokens (arXiv 2412.09616).

    DATA_ROOT/V2PE-Data/val/long_vqa_32k/val_long_vqa_SET_16_32.jsonl     also 32_40 (40k) ... 56_64 (64k)
    DATA_ROOT/V2PE-Data/image/long_vqa/{image,paste}/SET/val/             pictures

A record has id, image (list) and conversations; its first turn is the prompt as it is, its second the answer. The
metrics differ from those of the original sets, and `upstream` rewrites answers: read the numbers as a trend only.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

from eval.core.records import optional_field, require_field
from eval.core.sample import Sample
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import longvqa
from eval.metrics.estimate import average_estimates, bootstrap_stderr, read_estimate
from eval.metrics.lexicon import Lexicon, load_lexicon
from eval.metrics.protocol import Protocol
from eval.tasks.questions import Record, estimate_cost, put_images_first, read_rows
from internvl.errors import DataError

VERSION = 1
SOURCE = "https://huggingface.co/datasets/OpenGVLab/V2PE-Data"
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


def read_samples(data_root: Path, *, annotation: Path, images: Path) -> list[Sample]:
    """All samples of a file. Raises DataError for a bad record."""
    return read_rows(data_root / annotation, lambda _, record: _build(record, data_root / images))


def _build(record: Record, images: Path) -> Sample:
    turns = require_field(record, "conversations", list)
    if len(turns) < 2:
        raise DataError(f"conversations has {len(turns)} turns, expected a question and an answer")
    question, answer = (require_field(turn, "value", str) for turn in turns[:2])
    names = require_field(record, "image", (str, list))
    names = [names] if isinstance(names, str) else names
    metadata = optional_field(record, "metadata", dict) or {}
    length = optional_field(metadata, "context_length", (int, float))
    cost = estimate_cost(question, len(names) * (MAX_NUM + 1)) if length is None else float(length)
    return Sample(
        id=str(require_field(record, "id", (str, int))),
        prompt=put_images_first(question, len(names)),
        images=tuple(images / str(name) for name in names),
        answer=answer,
        metadata={"id": str(record["id"]), "question": question[-500:], "context_length": length},
        cost=cost,
    )


@lru_cache(maxsize=1)
def _read_lexicon() -> Lexicon:
    return load_lexicon()


def _score(answer: Any, response: str, protocol: str, *, set_name: str) -> float:
    lexicon = _read_lexicon()
    return longvqa.score(answer, response, task=set_name, protocol=cast(Protocol, protocol), lexicon=lexicon)


def _aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None, *, set_name: str) -> dict[str, Any]:
    """Name of the metric; where it belongs to the whole set, its value is the score."""
    metric, lexicon = longvqa.find_metric(set_name), _read_lexicon()
    numbers: dict[str, Any] = {"metric": metric, "lexicon": lexicon.name}
    if metric not in _CORPUS_METRICS:
        return numbers

    def compute(items: Sequence[Scored]) -> float:
        rows = [(item.metadata["id"], item.answer, item.response) for item in items]
        protocol = cast(Protocol, items[0].protocol)
        return longvqa.score_corpus(rows, task=set_name, protocol=protocol, lexicon=lexicon)

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
        version=VERSION,
        source=SOURCE,
        annotation=annotation,
        read_samples=partial(read_samples, annotation=annotation, images=find_images(set_name)),
        max_new_tokens=MAX_NEW_TOKENS[set_name],
        max_num=MAX_NUM,
        score_answer=partial(_score, set_name=set_name),
        protocols=("official", "upstream"),
        aggregate=partial(_aggregate, set_name=set_name),
    )


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over the sets of every length that is complete, by protocol."""
    summary: dict[str, Any] = {}
    for length in LENGTHS:
        names = [f"{set_name}-{length}" for set_name in SETS]
        if all(name in results for name in names):
            summary[length] = {
                protocol: vars(average_estimates([read_estimate(results[name]["results"][protocol]) for name in names]))
                for protocol in results[names[0]]["results"]
            }
    return summary


FAMILY = TaskFamily(
    names=tuple(f"{set_name}-{length}" for length in LENGTHS for set_name in SETS), make=make_task, summarise=summarise
)
