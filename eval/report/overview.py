"""The published tables with one's own runs in them: general benchmarks, and long contexts.

    scores.json of many tasks  --mean of a column's tasks-->  percent ± standard error, a row per run and scoring rule

Standard errors of means assume independent questions; a column is empty until all of its tasks are there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.metrics.estimate import Estimate, average_estimates, pool_estimates, read_estimate
from eval.metrics.milebench import TASK_GROUPS
from eval.report.published import GENERAL, GENERAL_COLUMNS, LONG, LONG_COLUMNS, PublishedRow
from eval.report.tables import (
    AVERAGE_JOINT,
    ComparedRow,
    Comparison,
    format_averages,
    format_table,
    label_runs,
    tabulate,
)
from eval.tasks.longvqa import LENGTHS, SETS
from eval.tasks.mm_niah import read_published
from eval.tasks.mvbench import VIDEO_FOLDERS
from eval.tasks.registry import summarise_groups

Results = Mapping[str, Mapping[str, Any]]
Column = Callable[[Results], Estimate | None]

PROTOCOLS = ("upstream", "official")
NOTES = {
    "general": (
        "The upstream rule made the published V2PE and InternVL2 numbers, the official one is the benchmark's.",
        "MMBench EN: published numbers are probably those of the test server, own ones are of the dev split.",
    ),
    "long": (
        "MM-NIAH: test split, else val; mean over length bins and depths, where an empty cell counts 0 as in the "
        "official script, so small subsets come out too low.",
        "MileBench: mean over the task groups T-1 to T-4, S-1 to S-5, N-1, N-2 and I-1; means over sets stand under "
        "averages.",
        "Video-MME without subtitles; MVBench is the mean over all questions.",
    ),
}


def build_overview(results: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Both tables, published rows first, then own runs.

    Args:
        results: Contents of scores.json files.
    """
    long_vqa = {f"Long-VQA {length}": _mean_of(*_name_sets(length)) for length in LENGTHS}
    found = {result["task"] for result in results}
    long_vqa = {name: column for name, column in long_vqa.items() if found >= set(_name_sets(name.split()[1]))}
    return [
        _compare("General benchmarks", GENERAL_COLUMNS, GENERAL, _general_columns(), results, NOTES["general"]),
        _compare(
            "Long contexts",
            (*LONG_COLUMNS, *long_vqa),
            LONG,
            {**_long_columns(), **long_vqa},
            results,
            NOTES["long"],
        ),
    ]


def list_averages(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Estimate]]:
    """Every mean that the groups' own summaries give, by run and place (`milebench / separate / official / ...`)."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for result, label in zip(results, label_runs(results), strict=True):
        runs.setdefault(label, []).append(result)
    return {label: dict(_flatten(summarise_groups(tasks))) for label, tasks in runs.items()}


def format_results(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown for a terminal: a table of all tasks, and one of the means over several of them where there are any."""
    tables = [format_table(tabulate(results)), format_averages(list_averages(results))]
    return "\n\n".join(filter(None, tables))


def _flatten(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Estimate]]:
    if isinstance(content, Mapping) and "stderr" in content:
        yield AVERAGE_JOINT.join(path), read_estimate(content)
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, (*path, str(key)))


def _compare(
    title: str,
    names: tuple[str, ...],
    published: Sequence[PublishedRow],
    columns: Mapping[str, Column],
    results: Sequence[Mapping[str, Any]],
    notes: tuple[str, ...],
) -> Comparison:
    others = [
        ComparedRow(
            row.model, row.size, {name: (score, None) for name, score in row.scores.items()}, row.note, row.source
        )
        for row in published
    ]
    runs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result, label in zip(results, label_runs(results), strict=True):
        runs.setdefault(label, {})[result["task"]] = result
    own = [row for label, tasks in runs.items() for row in _measure_rows(label, tasks, columns)]
    return Comparison(title, names, (*others, *own), notes)


def _measure_rows(label: str, tasks: Results, columns: Mapping[str, Column]) -> list[ComparedRow]:
    """A row per scoring rule, one where the rules agree, none without a number."""
    by_protocol = {protocol: _measure(tasks, protocol, columns) for protocol in PROTOCOLS}
    if by_protocol["upstream"] == by_protocol["official"]:
        by_protocol = {"both": by_protocol["official"]}
    first = next(iter(tasks.values()))
    name = f"{Path(first['info'].get('checkpoint') or 'checkpoint').name}, {label}"
    folders = ", ".join(sorted({str(result.get("folder", "")) for result in tasks.values()}))
    return [
        ComparedRow(name, f"{protocol} rules" if protocol == "both" else f"{protocol} rule", cells, "", folders, True)
        for protocol, cells in by_protocol.items()
        if cells
    ]


def _measure(tasks: Results, protocol: str, columns: Mapping[str, Column]) -> dict[str, tuple[float, float | None]]:
    """Percent and standard error by column, as far as the tasks of a column are there."""
    numbers = {
        name: result["results"][protocol]
        for name, result in tasks.items()
        if result["results"].get(protocol, {}).get("score") is not None
    }
    estimates = {name: read(numbers) for name, read in columns.items()}
    return {name: (100 * e.score, 100 * e.stderr) for name, e in estimates.items() if e is not None}


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
    return {**parts, "Avg": lambda numbers: _average([read(numbers) for read in parts.values()])}


def _long_columns() -> dict[str, Column]:
    needles = {needle: _read_needles(needle) for needle in ("image", "text")}
    groups = {
        group: _nested_mean([_mean_of(*(f"milebench/{name}" for name in names)) for names in tasks.values()])
        for group, tasks in TASK_GROUPS.items()
    }
    return {
        **{f"MM-NIAH {needle}": read for needle, read in needles.items()},
        "MM-NIAH avg": _nested_mean(list(needles.values())),
        **{f"MileBench {group}": read for group, read in groups.items()},
        "MileBench avg": _nested_mean(list(groups.values())),
        "Video-MME": _mean_of("videomme/test"),
        "MVBench": _pool([f"mvbench/{name}" for name in VIDEO_FOLDERS]),
    }


def _name_sets(length: str) -> list[str]:
    return [f"longvqa/{name}-{length}" for name in SETS]


def _mean_of(*names: str) -> Column:
    """Every task counts the same."""
    return lambda numbers: _average([_read(numbers.get(name)) for name in names])


def _nested_mean(columns: Sequence[Column]) -> Column:
    return lambda numbers: _average([read(numbers) for read in columns])


def _pool(names: Sequence[str]) -> Column:
    """Every question counts the same."""

    def read(numbers: Results) -> Estimate | None:
        known = [read_estimate(numbers[name]) for name in names if name in numbers]
        return pool_estimates(known) if len(known) == len(names) else None

    return read


def _read_needles(needle: str) -> Column:
    """Mean over the three MM-NIAH tasks with one kind of needle, each the mean over its length bins and depths."""

    def read(numbers: Results) -> Estimate | None:
        for split in ("test", "val"):
            names = [f"mm_niah/{kind}-{needle}-{split}" for kind in ("retrieval", "counting", "reasoning")]
            if all(name in numbers for name in names):
                return average_estimates([read_published(numbers[name]) for name in names])
        return None

    return read


def _read(numbers: Mapping[str, Any] | None) -> Estimate | None:
    return None if numbers is None else read_estimate(numbers)


def _average(parts: Sequence[Estimate | None]) -> Estimate | None:
    """Mean of estimates; None where one is missing."""
    known = [part for part in parts if part is not None]
    return average_estimates(known) if known and len(known) == len(parts) else None
