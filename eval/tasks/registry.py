"""Tasks by name: `group/task`, a group alone, or a pattern such as `mm_niah/*-text-test`.

Upstream's names are understood, too: `mmmu-val` is `mmmu/val`, `vqa-chartqa-test` is both parts of it.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from eval.core.task import Task, TaskFamily
from eval.tasks import (
    longvqa,
    milebench,
    mm_niah,
    mm_niah_long,
    mmbench,
    mmmu,
    mvbench,
    pope,
    scienceqa,
    seed,
    videomme,
    vqa,
)
from internvl.errors import ConfigError

PromptStyle = Literal["upstream", "official"]
PROMPT_STYLES: tuple[str, ...] = get_args(PromptStyle)

FAMILIES: Mapping[str, TaskFamily] = {
    "mm_niah": mm_niah.FAMILY,
    "mm_niah_long": mm_niah_long.FAMILY,
    "vqa": vqa.FAMILY,
    "scienceqa": scienceqa.FAMILY,
    "pope": pope.FAMILY,
    "seed": seed.FAMILY,
    "mmmu": mmmu.FAMILY,
    "mmbench": mmbench.FAMILY,
    "ccbench": mmbench.CCBENCH_FAMILY,
    "milebench": milebench.FAMILY,
    "longvqa": longvqa.FAMILY,
    "mvbench": mvbench.FAMILY,
    "videomme": videomme.FAMILY,
}


def find_task(name: str, *, prompts: str = "upstream") -> Task:
    """The task of one full name.

    Args:
        name: `group/task`.
        prompts: Whose prompts and answer limits: `upstream` (the published V2PE numbers) or `official`.

    Raises:
        ConfigError: No such task or prompt style.
    """
    if prompts not in PROMPT_STYLES:
        raise ConfigError(f"unknown prompt style {prompts!r}; expected one of {', '.join(PROMPT_STYLES)}")
    group, _, rest = name.partition("/")
    task = FAMILIES[group].make(rest, prompts) if group in FAMILIES else None
    if task is None:
        raise ConfigError(f"unknown task {name!r}; {_describe_known(name)}")
    return task


def select_tasks(patterns: str, *, prompts: str = "upstream") -> list[Task]:
    """Tasks of a comma-separated list of names, groups and patterns, each once, in order.

    Raises:
        ConfigError: An entry that matches nothing.
    """
    names: list[str] = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        names += _expand(pattern)
    if not names:
        raise ConfigError(f"no task given, got {patterns!r}; {_describe_known(patterns)}")
    return [find_task(name, prompts=prompts) for name in dict.fromkeys(names)]


def list_task_names() -> list[str]:
    """Full names of all tasks that a wildcard can select."""
    return [f"{group}/{name}" for group, family in FAMILIES.items() for name in family.names]


def summarise_groups(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers over several tasks, by group, from the contents of scores.json files made under one setting."""
    by_group: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        group, _, name = result["task"].partition("/")
        by_group.setdefault(group, {})[name] = result
    return {group: FAMILIES[group].summarise(tasks) for group, tasks in by_group.items() if group in FAMILIES}


def _expand(pattern: str) -> list[str]:
    wildcard = f"{pattern}/*" if pattern in FAMILIES else pattern
    if any(sign in wildcard for sign in "*?["):
        names = [name for name in list_task_names() if fnmatchcase(name, wildcard)]
        if not names:
            raise ConfigError(f"no task matches {pattern!r}; {_describe_known(pattern)}")
        return names
    return [pattern] if "/" in pattern else _find_upstream(pattern) or [pattern]


def _find_upstream(name: str) -> list[str]:
    """Tasks of a name of upstream's, `GROUP-TASK`: the task itself, or all whose names it begins."""
    names = {known.replace("/", "-", 1): known for known in list_task_names()}
    return [names[name]] if name in names else [known for old, known in names.items() if old.startswith(f"{name}-")]


def _describe_known(pattern: str) -> str:
    """The tasks of the pattern's group; all groups where there is no such group."""
    group = pattern.partition("/")[0]
    if group in FAMILIES:
        return f"known: {', '.join(f'{group}/{name}' for name in FAMILIES[group].names)}"
    return f"known groups: {', '.join(FAMILIES)}; python -m eval.run --list prints all tasks"
