"""Results as evaluations write them, without an evaluation."""

import json
from pathlib import Path

from eval.core.result import parse_result
from eval.core.task import Scored
from eval.tasks.mm_niah import aggregate


def make_content(
    version="v2pe_fix",
    stride=1,
    accuracy=0.75,
    task="mm_niah/retrieval-text-test",
    checkpoint="abc",
    settings=None,
    floors=None,
):
    """A scores.json with three context lengths of 20 questions."""
    scored = [
        Scored(float(i % 20 < accuracy * 20), {"context_length": length, "placed_depth": (i % 10) / 10, "chance": 0.1})
        for length in (150, 300, 700)
        for i in range(20)
    ]
    numbers = {
        "score": accuracy,
        "stderr": 0.05,
        "count": 60,
        "num_failed": 0,
        "num_empty": 1,
        "chance": 0.1,
        **aggregate(scored, (100, 200, 400)),
        **({} if floors is None else {"floors": floors}),
    }
    return {
        "task": task,
        "version": 1,
        "source": "https://example.org/<data>",
        "protocol": "official",
        "settings": {
            "rope_pos_id_version": version,
            "rope_pos_id_stride": stride,
            "checkpoint": checkpoint,
            **(settings or {}),
        },
        "info": {"checkpoint": f"/runs/{checkpoint}"},
        "results": {"official": numbers},
    }


def make_result(*args, folder="/runs/eval", **options):
    """The record of such a file."""
    return parse_result(json.loads(json.dumps(make_content(*args, **options))), Path(folder))
