"""From options to jobs: what is wrong with arguments, data or folders shows here, before a model loads."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.core.ablation import NO_ABLATION, ablate, describe_ablation
from eval.core.data_root import DataRoot, find_annotation, find_data_root
from eval.core.predictions import PredictionStore
from eval.core.sample import Sample
from eval.core.task import Task
from eval.run.endpoint import SENT_SETTINGS
from eval.run.options import RunOptions
from eval.run.queue import Job, check_jobs
from eval.tasks.registry import select_tasks
from internvl.errors import ConfigError
from internvl.infer.checkpoint import fingerprint_checkpoint
from internvl.infer.settings import DEFAULTS, InferenceSettings
from internvl.model import positions
from internvl.model.positions import check_stride, takes_stride
from internvl.model.v2pe import stride_to_units

logger = logging.getLogger(__name__)

_FILE_NAME = re.compile(r"[^\w.-]+")
DEFAULT_VERSION = "default"  # ordinary positions, unless version or stride are asked for


def choose_positions(settings: InferenceSettings, config: Mapping[str, object]) -> InferenceSettings:
    """The settings with the version and the stride in effect.

    Without either positions are ordinary ones, not the checkpoint's own, which evaluations compare with others.
    A stride is none unless the version takes one, and the checkpoint's if none is given.
    `config` is the checkpoint's config.json. Raises ConfigError if `v2pe_fix` has no stride or one unfit for batches.
    """
    saved, saved_version = config.get("rope_pos_id_stride"), str(config.get("rope_pos_id_version") or DEFAULT_VERSION)
    version, stride = settings.rope_pos_id_version, settings.rope_pos_id_stride
    if version is None and stride is None:
        version = DEFAULT_VERSION
    saved_stride = saved if isinstance(saved, int | float) else None
    version, stride = positions.choose_positions(version, stride, saved_version, saved_stride)
    if version == "default" and saved_version != "default":
        logger.warning(
            "the checkpoint was saved with --rope_pos_id_version %s and is evaluated with ordinary positions",
            saved_version,
        )
    if not takes_stride(version):
        if settings.rope_pos_id_stride is not None:
            logger.warning("--rope_pos_id_stride %s has no effect with --rope_pos_id_version %s", stride, version)
        return replace(settings, rope_pos_id_version=version, rope_pos_id_stride=None)
    check_stride(version, stride)
    if stride is None:
        return replace(settings, rope_pos_id_version=version)
    stride_to_units(stride)
    stride = int(stride) if stride == int(stride) else stride  # 64 and 64.0 are one setting
    if saved is not None and saved != stride:
        logger.warning("the checkpoint was saved with stride %s and is evaluated with stride %s", saved, stride)
    return replace(settings, rope_pos_id_version=version, rope_pos_id_stride=stride)


def choose_folder(options: RunOptions) -> Path:
    """The result folder: the given one, or one inside the checkpoint that is named after the positions."""
    settings = options.settings
    default = options.checkpoint or Path("work_dirs", "eval", _FILE_NAME.sub("-", str(options.model)))
    suffix = "" if settings.rope_pos_id_stride is None else f"_{settings.rope_pos_id_stride}"
    if settings.rope_scaling is not None:
        suffix += "_" + str(settings.rope_scaling).replace(":", "-")
    if settings.logn_scaling is not None:
        suffix += f"_logn-{settings.logn_scaling}"
    if options.ablate != NO_ABLATION:
        suffix += f"_{options.ablate}"
    return options.out or default / f"eval_{settings.rope_pos_id_version or DEFAULT_VERSION}{suffix}"


def plan_jobs(options: RunOptions) -> list[Job]:
    """One checked job per task; `options` have the stride and the dtype in effect.

    Files that a task can fetch are fetched. Raises InternVLError for an unknown task or protocol, a missing or wrong
    annotation, missing pictures, or predictions in the result folder that were made with other settings.
    """
    tasks, data_root = select_tasks(options.tasks, prompts=options.prompts), find_data_root(options.data_root)
    for task in tasks:
        if options.protocol not in (None, *task.protocols):
            raise ConfigError(f"--protocol must be one of {', '.join(task.protocols)}, got {options.protocol!r}")
        task.fetch_missing(data_root)
        for file in task.files:
            find_annotation(file, data_root, source=task.source)
    checkpoint = None if options.checkpoint is None else fingerprint_checkpoint(options.checkpoint)
    if checkpoint is None and (forced := [task.name for task in tasks if task.write_gold is not None]):
        raise ConfigError(
            f"{', '.join(forced)}: teacher forcing needs the model itself; use --checkpoint, or other tasks"
        )
    jobs = [_plan_job(task, options, data_root, checkpoint=checkpoint) for task in tasks]
    check_jobs(jobs, fail_missing=options.fail_missing)
    if not options.overwrite:
        for job in jobs:
            job.store.check()
    return jobs


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _describe_model(options: RunOptions, checkpoint: str | None) -> dict[str, str | int | float | bool | None]:
    """What answers depend on besides the question and how tokens are chosen."""
    if checkpoint is not None:
        # A --max_num takes the place of the task's.
        return {"checkpoint": checkpoint, **options.settings.fingerprint()}
    asked = vars(options.settings)
    return {"model": options.model, **{name: asked[name] for name in SENT_SETTINGS if asked[name] is not None}}


def _note_length(sample: Sample) -> Sample:
    """The sample with the length of its context, estimated where the benchmark does not say it, for scores by length.

    It belongs to the question, unlike the number of tokens of a prompt, so that it is the same in all runs and known of
    failed questions.
    """
    if sample.metadata.get("context_length") is not None or not sample.cost:
        return sample
    return replace(sample, metadata={**sample.metadata, "context_length": round(sample.cost)})


def _plan_job(task: Task, options: RunOptions, data_root: DataRoot, *, checkpoint: str | None) -> Job:
    optional = [path for path in (data_root / file for file in task.optional_files) if path.is_file()]
    settings = {
        "task": task.name,
        "task_version": task.version,
        **task.details,
        "annotation": _hash_files([*(data_root / file for file in task.files), *optional]),
        "max_num": task.max_num,
        "max_new_tokens": task.max_new_tokens,
        **({} if task.num_frames is None else {"num_frames": task.num_frames}),
        **_describe_model(options, checkpoint),
        **options.sampling.fingerprint(),
        **describe_ablation(options.ablate, options.sampling.seed),
    }
    where = {"endpoint": str(options.endpoint)}
    if options.checkpoint is not None:
        where = {"checkpoint": str(options.checkpoint.absolute())}
    info = {**where, "data_root": str(data_root), **task.info}
    samples = ablate(
        [_note_length(sample) for sample in task.read_samples(data_root)],
        options.ablate,
        num_frames=task.num_frames or DEFAULTS.num_frames,
        limit=options.limit,
        seed=options.sampling.seed or 0,
    )
    store = PredictionStore(
        choose_folder(options) / task.name,
        settings,
        info,
        num_samples=len(samples),
        length_bins=options.length_bins,
    )
    return Job(task, tuple(samples), store)
