"""The group `vqa`: benchmarks of one picture and one open question, and AI2D."""

from collections.abc import Mapping
from typing import Any

from eval.tasks import ai2d, chartqa, docvqa, gqa, infovqa, ocrvqa, okvqa, textvqa, vizwiz, vqav2
from eval.tasks.questions import collect_tasks


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """ChartQA's mean of both parts."""
    mean = chartqa.summarise(results)
    return {"chartqa-test": mean} if mean else {}


FAMILY = collect_tasks(
    *chartqa.TASKS,
    *docvqa.TASKS,
    *infovqa.TASKS,
    *ai2d.TASKS,
    *textvqa.TASKS,
    *vqav2.TASKS,
    *okvqa.TASKS,
    *vizwiz.TASKS,
    *gqa.TASKS,
    *ocrvqa.TASKS,
    summarise=summarise,
)
