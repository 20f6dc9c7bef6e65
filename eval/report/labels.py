"""Names of runs: what differs between the runs of a report, in words, unless the user names them."""

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from eval.core.result import Settings, TaskResult
from internvl.errors import ConfigError

_VERSIONS = {"default": "default positions", "v2pe_fix": "V2PE", "v2pe_rnd": "V2PE random strides"}
_METHOD = ("positions", "rope_scaling", "logn_scaling", "ablate")  # what is said of a run that stands alone


def label_setting(settings: Settings) -> str:
    """How a run was asked, in words: `V2PE stride 1/16`, `default positions, yarn:4, log-n 192, no image`."""
    parts = _describe(settings, {})
    return ", ".join(parts[name] for name in _METHOD if name in parts)


def name_runs(results: Sequence[TaskResult], given: Sequence[str] | None = None) -> list[str]:
    """One name per result, that of its run, never the same for two results of one task.

    `given` are the user's names of the runs, in the order of their first results. Otherwise a name says what differs
    between the runs, and their folders where nothing else does. Raises ConfigError for another number of names.
    """
    if given is not None:
        return _use_names(results, given)
    facts = [_describe(result.settings, result.info) for result in results]
    # Every task has a default of its own for the largest number of tiles, so it is named only where it must be.
    for left_out in (("max_num",), ()):
        names = _name_by(results, facts, left_out)
        if _are_unique(names, results):
            return names
    runs = [result.run_folder for result in results]
    root = os.path.commonpath([run.parent for run in runs])
    return [f"{name}, {run.relative_to(root)}" for name, run in zip(names, runs, strict=True)]


def format_stride(stride: float) -> str:
    """`64`, `1/16`, `3/8`, `0.3`: a stride as one types it."""
    fraction = Fraction(stride).limit_denominator(2**16)
    is_typed_so = fraction.numerator == 1 or fraction.denominator & (fraction.denominator - 1) == 0
    return str(fraction) if float(fraction) == stride and stride < 1 and is_typed_so else f"{stride:g}"


def _use_names(results: Sequence[TaskResult], given: Sequence[str]) -> list[str]:
    runs = list(dict.fromkeys(result.run_folder for result in results))
    if len(given) != len(runs) or len(set(given)) != len(given):
        raise ConfigError(
            f"--names has {len(given)} names ({', '.join(given)}), expected a different one for each of the "
            f"{len(runs)} runs: {', '.join(map(str, runs))}"
        )
    return [given[runs.index(result.run_folder)] for result in results]


def _describe(settings: Settings, info: Mapping[str, str]) -> dict[str, str]:
    """Everything that may tell a run from others, in words, as far as it was set."""
    version, stride, values = settings.rope_pos_id_version, settings.rope_pos_id_stride, settings.values
    parts = {"positions": _VERSIONS.get(version, version)}
    if stride is not None:
        parts["positions"] += f" stride {format_stride(stride)}"
    if "checkpoint" in values:
        parts["checkpoint"] = f"checkpoint {Path(info.get('checkpoint') or str(values['checkpoint'])).name}"
    if settings.rope_scaling is not None:
        parts["rope_scaling"] = "unscaled" if settings.rope_scaling == "none" else settings.rope_scaling
    if settings.logn_scaling is not None:
        parts["logn_scaling"] = f"log-n {settings.logn_scaling:g}"
    for name in ("model", "max_num", "prompts", "dtype", "kv_cache"):
        if values.get(name) is not None:
            parts[name] = f"{name} {values[name]}"
    if settings.ablate is not None:
        parts["ablate"] = settings.ablate.replace("_", " ")
    return parts


def _name_by(results: Sequence[TaskResult], facts: Sequence[Mapping[str, str]], left_out: Sequence[str]) -> list[str]:
    known = dict.fromkeys(name for parts in facts for name in parts if name not in left_out)
    differing = [name for name in known if _differs(name, results, facts)] or _METHOD
    if not all(any(name in parts for name in differing) for parts in facts):  # `no image` and a run without an ablation
        differing = ["positions", *differing]
    return [", ".join(parts[name] for name in differing if name in parts) for parts in facts]


def _are_unique(names: Sequence[str], results: Sequence[TaskResult]) -> bool:
    return len({(result.task, name) for result, name in zip(results, names, strict=True)}) == len(names)


def _differs(name: str, results: Sequence[TaskResult], facts: Sequence[Mapping[str, str]]) -> bool:
    """Whether two results of one task differ in a fact."""
    values: dict[str, set[str | None]] = {}
    for result, parts in zip(results, facts, strict=True):
        # Two checkpoints may have the same folder name, and one checkpoint two.
        value = str(result.settings.values.get(name)) if name == "checkpoint" else parts.get(name)
        values.setdefault(result.task, set()).add(value)
    return any(len(found) > 1 for found in values.values())
