"""Overview: own runs in the published tables, one of general benchmarks and one of long contexts.

    results of many tasks  --mean of a column's tasks-->  percent with 95 % interval, a row per run and scoring rule

Intervals of means take questions as independent. A column is empty until all of its tasks are there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from eval.core.result import Scores, TaskResult
from eval.metrics.estimate import Estimate, average_estimates, pool_estimates
from eval.metrics.milebench import TASK_GROUPS
from eval.report.labels import name_runs
from eval.report.published import (
    GENERAL,
    GENERAL_COLUMNS,
    LONG,
    LONG_COLUMNS,
    ComparedRow,
    Comparison,
    Percent,
)
from eval.report.rows import AVERAGE_JOINT, tabulate
from eval.report.tables import format_averages, format_table
from eval.tasks.longvqa import LENGTHS, SETS
from eval.tasks.mm_niah import read_published
from eval.tasks.mvbench import VIDEO_FOLDERS
from eval.tasks.registry import summarise_groups

# How a column is computed: scores of a run by task, under one rule -> mean; None where a task is missing.
Column = Callable[[Mapping[str, Scores]], Estimate | None]

PROTOCOLS = ("upstream", "official")
NOTES = {
    "general": (
        "The upstream rule made the published V2PE and InternVL2 numbers, the official one is the benchmark's.",
        "MMBench EN: published numbers are probably those of the test server, own ones are of the dev split.",
    ),
    "long": (
        "MM-NIAH: test split, else val; mean over length bins and depths, where an empty cell counts 0 as in the "
        "official script, so small subsets come out too low.",
        "MileBench: mean over the task groups T-1 to T-4, S-1 to S-5, N-1, N-2 and I-1; means over sets are listed "
        "under averages.",
        "Video-MME without subtitles; MVBench is the mean over all questions.",
    ),
}


def build_overview(results: Sequence[TaskResult], names: Sequence[str]) -> list[Comparison]:
    """Both tables, published rows first, then own runs; `names` are those of the results' runs."""
    found = {result.task for result in results}
    long_vqa = {
        f"Long-VQA {length}": _mean_of(*_name_sets(length)) for length in LENGTHS if found >= set(_name_sets(length))
    }
    runs = _group_by_run(results, names)
    return [
        Comparison(
            "General benchmarks",
            GENERAL_COLUMNS,
            (*GENERAL, *_measure_runs(runs, _general_columns())),
            NOTES["general"],
        ),
        Comparison(
            "Long contexts",
            (*LONG_COLUMNS, *long_vqa),
            (*LONG, *_measure_runs(runs, {**_long_columns(), **long_vqa})),
            NOTES["long"],
        ),
    ]


def list_averages(results: Sequence[TaskResult], names: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Every mean in the groups' own summaries, by run and place (`milebench / separate / official / ...`)."""
    return {
        label: dict(_flatten(summarise_groups([result.content for result in members])))
        for label, members in _group_by_run(results, names).items()
    }


def format_results(results: Sequence[TaskResult]) -> str:
    """Markdown for a terminal: a table of all tasks, and one of the means over several tasks where there are any."""
    names = name_runs(results)
    tables = [format_table(tabulate(results, names)), format_averages(list_averages(results, names))]
    return "\n\n".join(filter(None, tables))


def _flatten(content: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Estimate]]:
    if isinstance(content, Mapping) and "stderr" in content:
        yield AVERAGE_JOINT.join(path), Estimate(content["score"], content["stderr"], content["count"])
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, (*path, str(key)))


def _group_by_run(results: Sequence[TaskResult], names: Sequence[str]) -> dict[str, list[TaskResult]]:
    runs: dict[str, list[TaskResult]] = {}
    for result, name in zip(results, names, strict=True):
        runs.setdefault(name, []).append(result)
    return runs


def _measure_runs(runs: Mapping[str, Sequence[TaskResult]], columns: Mapping[str, Column]) -> Iterator[ComparedRow]:
    """A row per run and scoring rule: one row where the rules agree, none without a number."""
    for label, results in runs.items():
        by_protocol = {f"{protocol} rule": _measure(results, protocol, columns) for protocol in PROTOCOLS}
        if by_protocol["upstream rule"] == by_protocol["official rule"]:
            by_protocol = {"both rules": by_protocol["official rule"]}
        name = f"{Path(results[0].info.get('checkpoint') or 'checkpoint').name}, {label}"
        folders = ", ".join(sorted({str(result.folder) for result in results}))
        for kind, cells in by_protocol.items():
            if cells:
                yield ComparedRow(name, kind, cells, source=folders, is_own=True)


def _measure(results: Sequence[TaskResult], protocol: str, columns: Mapping[str, Column]) -> dict[str, Percent]:
    """Numbers by column, as far as the tasks of a column are there."""
    scores = {
        result.task: result.scores[protocol]
        for result in results
        if protocol in result.scores and result.scores[protocol].score is not None
    }
    means = {name: compute(scores) for name, compute in columns.items()}
    return {
        name: Percent(100 * mean.score, (100 * mean.interval[0], 100 * mean.interval[1]))
        for name, mean in means.items()
        if mean is not None
    }


def _general_columns() -> dict[str, Column]:
    parts = {
        "ChartQA": _mean_of("vqa/chartqa-test-human", "vqa/chartqa-test-augmented"),
        "DocVQA": _mean_of("vqa/docvqa-val"),
        "AI2D": _mean_of("vqa/ai2d-test"),
        "InfoVQA": _mean_of("vqa/infovqa-val"),
        "SQA": _mean_of("scienceqa/test"),
        "POPE": _mean_of("pope/test"),
        "MMMU val": _mean_of("mmmu/val"),
        "MMBench EN": _mean_of("mmbench/dev-en"),
        "SEED-I": _mean_of("seed/image"),
    }
    return {**parts, "Avg": _nested_mean(list(parts.values()))}


def _long_columns() -> dict[str, Column]:
    needles = {needle: _pool_needles(needle) for needle in ("image", "text")}
    groups = {
        group: _nested_mean([_mean_of(*(f"milebench/{name}" for name in names)) for names in tasks.values()])
        for group, tasks in TASK_GROUPS.items()
    }
    return {
        **{f"MM-NIAH {needle}": column for needle, column in needles.items()},
        "MM-NIAH avg": _nested_mean(list(needles.values())),
        **{f"MileBench {group}": column for group, column in groups.items()},
        "MileBench avg": _nested_mean(list(groups.values())),
        "Video-MME": _mean_of("videomme/test"),
        "MVBench": _pool([f"mvbench/{name}" for name in VIDEO_FOLDERS]),
    }


def _name_sets(length: str) -> list[str]:
    return [f"longvqa/{name}-{length}" for name in SETS]


def _mean_of(*names: str) -> Column:
    """Every task counts the same."""
    return lambda scores: _average([scores[name].estimate if name in scores else None for name in names])


def _nested_mean(columns: Sequence[Column]) -> Column:
    return lambda scores: _average([compute(scores) for compute in columns])


def _pool(names: Sequence[str]) -> Column:
    """Every question counts the same."""

    def compute(scores: Mapping[str, Scores]) -> Estimate | None:
        known = [mean for name in names if name in scores and (mean := scores[name].estimate)]
        return pool_estimates(known) if len(known) == len(names) else None

    return compute


def _pool_needles(needle: str) -> Column:
    """Mean over the three MM-NIAH tasks with one kind of needle, each the mean over its length bins and depths."""

    def compute(scores: Mapping[str, Scores]) -> Estimate | None:
        for split in ("test", "val"):
            names = [f"mm_niah/{kind}-{needle}-{split}" for kind in ("retrieval", "counting", "reasoning")]
            if all(name in scores for name in names):
                return average_estimates([read_published(scores[name].numbers) for name in names])
        return None

    return compute


def _average(parts: Sequence[Estimate | None]) -> Estimate | None:
    """Mean of estimates; None where one is missing."""
    known = [part for part in parts if part is not None]
    return average_estimates(known) if known and len(known) == len(parts) else None
