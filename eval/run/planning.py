"""From options to jobs: what is wrong with arguments, data or folders shows here, before a model loads."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.core.predictions import PredictionStore
from eval.core.records import find_annotation
from eval.core.task import Task
from eval.run.options import RunOptions
from eval.run.queue import Job, check_jobs
from eval.tasks.registry import select_tasks
from internvl.errors import ConfigError
from internvl.infer.checkpoint import fingerprint_checkpoint
from internvl.model.v2pe import check_stride, stride_to_units

logger = logging.getLogger(__name__)


def choose_stride(version: str, stride: int | float | None, config: Mapping[str, Any]) -> int | float | None:
    """The stride in effect: none unless the version is `v2pe_fix`, then the given one or the checkpoint's.

    Raises:
        ConfigError: Unknown version, no stride, or one that is not positive.
    """
    saved, saved_version = config.get("rope_pos_id_stride"), config.get("rope_pos_id_version")
    chosen = saved if stride is None else stride
    check_stride(version, chosen)
    if version == "default" and saved_version not in (None, "default"):
        logger.warning(
            "the checkpoint was saved with --rope_pos_id_version %s and is evaluated with ordinary positions",
            saved_version,
        )
    if version != "v2pe_fix" or chosen is None:
        if stride is not None:
            logger.warning("--rope_pos_id_stride %s has no effect with --rope_pos_id_version %s", stride, version)
        return None
    stride_to_units(chosen)
    if saved is not None and saved != chosen:
        logger.warning("the checkpoint was saved with stride %s and is evaluated with stride %s", saved, chosen)
    return int(chosen) if chosen == int(chosen) else chosen


def choose_folder(options: RunOptions, stride: int | float | None) -> Path:
    """The result folder: the given one, or one inside the checkpoint that is named after the positions."""
    suffix = "" if stride is None else f"_{stride}"
    if options.rope_scaling is not None:
        suffix += "_" + str(options.rope_scaling).replace(":", "-")
    if options.logn_scaling is not None:
        suffix += f"_logn-{options.logn_scaling}"
    return options.out or options.checkpoint / f"eval_{options.rope_pos_id_version}{suffix}"


def plan_jobs(options: RunOptions, *, stride: int | float | None, dtype: str) -> list[Job]:
    """One checked job per task.

    Args:
        options: The run.
        stride: The stride in effect.
        dtype: Name of the weights' type.

    Raises:
        InternVLError: An unknown task or protocol, a missing or wrong annotation, missing pictures, or predictions in
            the result folder that were made with other settings.
    """
    tasks = select_tasks(options.tasks, prompts=options.prompts)
    for task in tasks:
        if options.protocol not in (None, *task.protocols):
            raise ConfigError(f"--protocol must be one of {', '.join(task.protocols)}, got {options.protocol!r}")
        for file in task.files:
            find_annotation(options.data_root / file, data_root=options.data_root, source=task.source)
    setting = {
        "checkpoint": fingerprint_checkpoint(options.checkpoint),
        "rope_pos_id_version": options.rope_pos_id_version,
        "rope_pos_id_stride": stride,
        "dtype": dtype,
        **_scaling_settings(options),
        **_cache_settings(options),
    }
    folder = choose_folder(options, stride)
    jobs = [_plan_job(task, options, setting=setting, folder=folder) for task in tasks]
    check_jobs(jobs, fail_missing=options.fail_missing)
    if not options.overwrite:
        for job in jobs:
            job.store.check()
    return jobs


def _scaling_settings(options: RunOptions) -> dict[str, Any]:
    """Nothing without a flag: the checkpoint's own scaling is part of its fingerprint."""
    settings: dict[str, Any] = {}
    if options.rope_scaling is not None:
        settings["rope_scaling"] = str(options.rope_scaling)
    if options.logn_scaling is not None:
        settings["logn_scaling"] = options.logn_scaling
    return settings


def _cache_settings(options: RunOptions) -> dict[str, Any]:
    """What answers depend on. Only quantised keys and values change them, and they follow the pieces of the prompt.

    Nothing for the other caches: runs with any of them may go on with each other's predictions.
    """
    if options.kv_cache != "quantized":
        return {}
    return {"kv_cache": options.kv_cache, "prefill_chunk_size": options.prefill_chunk_size}


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _plan_job(task: Task, options: RunOptions, *, setting: Mapping[str, Any], folder: Path) -> Job:
    settings = {
        "task": task.name,
        "task_version": task.version,
        **task.details,
        "annotation": _hash_files([options.data_root / file for file in task.files]),
        "max_num": options.max_num or task.max_num,
        "max_new_tokens": task.max_new_tokens,
        **({} if task.num_frames is None else {"num_frames": task.num_frames}),
        **setting,
    }
    info = {"checkpoint": str(options.checkpoint.absolute()), "data_root": str(options.data_root.absolute())}
    samples = task.read_samples(options.data_root)[: options.limit]
    return Job(task, tuple(samples), PredictionStore(folder / task.name, settings, info))
