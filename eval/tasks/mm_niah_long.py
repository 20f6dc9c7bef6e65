"""MM-NIAH beyond 64k tokens: V2PE's long retrieval and reasoning sets, 128k to 1M (arXiv 2412.09616).

    DATA_ROOT/V2PE-Data/val/long_mr_128k/test_long_mr_{image,text}_{retrieval,reasoning}_64_128.jsonl
    ... long_mr_256k/..._128_256.jsonl, long_mr_512k/..._256_512.jsonl, long_mr_1m/..._512_1200.jsonl
    DATA_ROOT/MM-NIAH/mm_niah_test/images/               pictures, those of MM-NIAH's test split; or
    DATA_ROOT/V2PE-Data/image/long_mr/val/               those of V2PE-Data

Records, prompts and scoring are those of `mm_niah`; pictures have up to twelve tiles. Here answers are generated. The
published numbers were measured otherwise: the gold answer was part of the input, and the most probable token at each of
its places counted as the response. That measure is the task whose name ends in `-teacher-forced`. It is too high for
answers of several tokens, whose beginnings are given away, and fair for the letter of an option, which is one token.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase

from eval.core.task import Scored, Task, TaskFamily
from eval.metrics import mm_niah as metric
from eval.metrics.estimate import read_estimate
from eval.metrics.protocol import PROTOCOLS
from eval.tasks import mm_niah
from eval.tasks.questions import Results, find_numbers

FOLDER = Path("V2PE-Data", "val")
# Those of MM-NIAH; V2PE-Data has a folder of its own beside its training pictures.
IMAGES = (Path("MM-NIAH", "mm_niah_test", "images"), Path("V2PE-Data", "image", "long_mr", "val"))
LENGTHS = {"128k": "64_128", "256k": "128_256", "512k": "256_512", "1M": "512_1200"}
LENGTH_EDGES = (64_000, 128_000, 256_000, 512_000)
MAX_NUM = 12
TEACHER_FORCED = "-teacher-forced"
_NAME = re.compile(r"(?P<kind>retrieval|reasoning)-(?P<needle>text|image)-test-(?P<length>128k|256k|512k|1M)")


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """The numbers of `mm_niah`, in length bins that distinguish 64k from 1M."""
    return mm_niah.aggregate(scored, length_edges or LENGTH_EDGES)


def write_gold(answer: mm_niah.Answer) -> str:
    """What a model says that is right: the letter of an option, or the answer itself."""
    return ascii_uppercase[answer] if isinstance(answer, int) else str(answer)


def make_task(name: str, prompts: str) -> Task | None:
    """The task `name`, for example `retrieval-image-test-1M` or `retrieval-image-test-1M-teacher-forced`."""
    match = _NAME.fullmatch(name.removesuffix(TEACHER_FORCED))
    if match is None:
        return None
    length, style = match["length"], replace(mm_niah.STYLES[prompts], max_num=MAX_NUM)
    file = f"test_long_mr_{match['needle']}_{match['kind']}_{LENGTHS[length]}.jsonl"
    annotation = FOLDER / f"long_mr_{length.lower()}" / file
    return Task(
        name=f"mm_niah_long/{name}",
        version=1,
        source=(
            "https://huggingface.co/datasets/OpenGVLab/V2PE-Data "
            "(pictures: https://huggingface.co/datasets/OpenGVLab/MM-NIAH)"
        ),
        annotation=annotation,
        read_samples=partial(
            mm_niah.read_samples, annotation=annotation, images=IMAGES, style=style, is_counting=False
        ),
        max_new_tokens=mm_niah.MAX_NEW_TOKENS,
        max_num=MAX_NUM,
        score_answer=metric.is_correct,
        protocols=PROTOCOLS,
        aggregate=aggregate,
        details={"prompts": prompts},
        write_gold=write_gold if name.endswith(TEACHER_FORCED) else None,
    )


def summarise(results: Results) -> dict[str, object]:
    """Accuracy by way of answering, protocol, kind of question and length, as far as there are results."""
    summary: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
    for suffix, label in (("", "generated"), (TEACHER_FORCED, "teacher_forced")):
        for name in FAMILY.names:
            kind, _, length = name.rpartition("-test-")
            for protocol, (numbers,) in find_numbers(results, [name + suffix]).items():
                table = summary.setdefault(label, {}).setdefault(protocol, {})
                table.setdefault(kind, {})[length] = vars(read_estimate(numbers))
    return {**summary}


FAMILY = TaskFamily(
    names=tuple(
        f"{kind}-{needle}-test-{length}"
        for needle in ("image", "text")
        for kind in ("retrieval", "reasoning")
        for length in LENGTHS
    ),
    make=make_task,
    summarise=summarise,
)
