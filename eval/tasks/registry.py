"""Tasks by name: `group/task`, a group alone, a pattern such as `mm_niah/*-text-test`, or the YAML file of an own one.

Names of the public code are understood as well: `mmmu-val` is `mmmu/val`, `vqa-chartqa-test` is both parts of it,
`docvqa_val` is `vqa/docvqa-val` (internvl/moved_names.py), and a name without a group that only one group has.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from eval.core.result import Settings, explain_damage
from eval.core.task import Task, TaskFamily
from eval.tasks import own
from eval.tasks.questions import Results
from internvl.errors import ConfigError, did_you_mean
from internvl.moved_names import TASKS as MOVED_TASKS

PromptStyle = Literal["upstream", "official"]
PROMPT_STYLES: tuple[str, ...] = get_args(PromptStyle)

# Group -> modules of eval/tasks, each with a FAMILY of tasks. A new benchmark is a file there and a name here.
GROUPS: dict[str, tuple[str, ...]] = {
    "mm_niah": ("mm_niah",),
    "mm_niah_long": ("mm_niah_long",),
    "vqa": ("chartqa", "docvqa", "infovqa", "ai2d", "textvqa", "vqav2", "okvqa", "vizwiz", "gqa", "ocrvqa"),
    "scienceqa": ("scienceqa",),
    "pope": ("pope",),
    "seed": ("seed",),
    "mmmu": ("mmmu",),
    "mmbench": ("mmbench",),
    "ccbench": ("ccbench",),
    "milebench": ("milebench",),
    "longvqa": ("longvqa",),
    "mmlongbench": ("mmlongbench",),
    "mmlongbench_doc": ("mmlongbench_doc",),
    "longdocurl": ("longdocurl",),
    "slidevqa": ("slidevqa",),
    "dude": ("dude",),
    "mvbench": ("mvbench",),
    "videomme": ("videomme",),
    "videomme_v2": ("videomme_v2",),
    "longvideobench": ("longvideobench",),
    "mlvu": ("mlvu",),
    "lvbench": ("lvbench",),
    "vnbench": ("vnbench",),
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
    for family in _load_families(group):
        task = family.make(rest, prompts)
        if task is not None:
            return task
    raise ConfigError(f"unknown task {name!r}; {_describe_known(name)}")


def select_tasks(patterns: str, *, prompts: str = "upstream") -> list[Task]:
    """Tasks of a comma-separated list of names, groups, patterns and YAML files.

    Raises ConfigError if an entry matches nothing, a file is wrong, or two files are benchmarks of one name.
    """
    names: list[str] = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        names += [pattern] if pattern.endswith(own.SUFFIXES) else _expand(pattern)
    if not names:
        raise ConfigError(f"no task given, got {patterns!r}; {_describe_known(patterns)}")
    tasks: dict[str, Task] = {}
    for name in dict.fromkeys(names):
        task = own.make_task(Path(name), prompts) if name.endswith(own.SUFFIXES) else find_task(name, prompts=prompts)
        if task.name in tasks:
            raise ConfigError(_explain_doubled(name, task.name))
        tasks[task.name] = task
    return list(tasks.values())


def _explain_doubled(name: str, task: str) -> str:
    if name.endswith(own.SUFFIXES):
        return f"{name} is a second benchmark {task}; give one of them another `name`"
    # The only other names of a task are those with its usual number of frames.
    return f"{task} is asked for twice, with and without its usual number of frames in the name; leave one of them out"


def find_saved_task(settings: Settings, info: Mapping[str, str]) -> Task:
    """The task of saved predictions. Raises ConfigError if there is none of its name (any more)."""
    if own.FILE in info:
        return own.find_saved_task(settings.task, info, settings.values.get("benchmark"), prompts=settings.prompts)
    return find_task(settings.task, prompts=settings.prompts)


def list_task_names(groups: Iterable[str] = GROUPS) -> list[str]:
    """Full names of all tasks that a wildcard can select."""
    return [f"{group}/{name}" for group in groups for family in _load_families(group) for name in family.names]


def summarise_groups(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, object]]:
    """Numbers over several tasks, by group, from the contents of scores.json files made under one setting."""
    by_group: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        group, _, name = result["task"].partition("/")
        by_group.setdefault(group, {})[name] = result
    return {group: _summarise(group, tasks) for group, tasks in by_group.items() if group in (*GROUPS, own.GROUP)}


def _summarise(group: str, results: Results) -> dict[str, object]:
    with explain_damage(
        f"scores of {group} cannot be averaged over tasks", "make them again with python -m eval.score"
    ):
        if group == own.GROUP:
            return own.summarise(results)
        return {key: numbers for family in _load_families(group) for key, numbers in family.summarise(results).items()}


def _load_families(group: str) -> list[TaskFamily]:
    return [_load_family(module) for module in GROUPS.get(group, ())]


@cache
def _load_family(module: str) -> TaskFamily:
    # Imported on demand: evaluating one benchmark does not load the libraries of the others.
    family: TaskFamily = import_module(f"eval.tasks.{module}").FAMILY
    return family


def _expand(pattern: str) -> list[str]:
    group = pattern.partition("/")[0]
    wildcard = f"{pattern}/*" if pattern in GROUPS else pattern
    if any(sign in wildcard for sign in "*?["):
        known = list_task_names([group] if group in GROUPS else GROUPS)
        names = [name for name in known if fnmatchcase(name, wildcard)]
        if not names:
            raise ConfigError(f"no task matches {pattern!r}; {_describe_known(pattern)}")
        return names
    return [pattern] if "/" in pattern else _find_upstream(pattern) or [pattern]


def _find_upstream(name: str) -> list[str]:
    """Tasks of a name of the public code: of the table, `GROUP-TASK`, or the only one that is called so.

    Raises ConfigError for a benchmark that is not evaluated here.
    """
    if moved := MOVED_TASKS.get(name):
        if moved.taken_as is None:
            raise ConfigError(f"task {name!r} {moved.use.replace('`', '')}")
        return [moved.taken_as]
    names = {known.replace("/", "-", 1): known for known in list_task_names()}
    if name in names:
        return [names[name]]
    begun = [known for old, known in names.items() if old.startswith(f"{name}-")]
    called = [known for known in names.values() if known.partition("/")[2] == name]
    return begun or (called if len(called) == 1 else [])


def _describe_known(pattern: str) -> str:
    """The tasks of the pattern's group; all groups where there is no such group."""
    group = pattern.partition("/")[0]
    if group in GROUPS:
        known = list_task_names([group])
        return f"known: {', '.join(known)}{did_you_mean(pattern, known)}"
    return f"known groups: {', '.join(GROUPS)}; python -m eval.run --list prints all tasks{did_you_mean(group, GROUPS)}"
