"""The model's side of an evaluation: a loaded session as the function that turns a sample into a prediction."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.core.runner import Answer
from eval.core.sample import Prediction, Sample
from eval.core.task import Task
from internvl.infer.context_parallel import ContextParallel
from internvl.infer.session import Session
from internvl.model.rope_scaling import RopeScaling

logger = logging.getLogger(__name__)


def load_answerer(
    checkpoint: Path,
    *,
    dtype: str,
    device: str,
    rope_pos_id_version: str,
    rope_pos_id_stride: float | None,
    rope_scaling: RopeScaling | None = None,
    max_num: int | None,
    cache_mib: int,
    prefill_chunk_size: int | None = None,
    kv_cache: str = "dynamic",
    context_parallel: ContextParallel | None = None,
    layer_devices: Sequence[str] = (),
) -> Answer:
    """Load a checkpoint and return the function that asks it.

    Running out of GPU memory fails one sample, not the run; the sample is counted as wrong. Of processes that answer
    together one alone cannot go on, so there it ends the run (which continues where it was when started again).

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
    """
    session = Session.from_pretrained(
        checkpoint,
        dtype=getattr(torch, dtype),
        device=device,
        rope_pos_id_version=rope_pos_id_version,
        rope_pos_id_stride=rope_pos_id_stride,
        rope_scaling=rope_scaling,
        max_cache_bytes=cache_mib * 2**20,
        prefill_chunk_size=prefill_chunk_size,
        kv_cache=kv_cache,
        context_parallel=context_parallel,
        layer_devices=layer_devices,
    )

    def answer(task: Task, sample: Sample) -> Prediction:
        try:
            return _ask(session, task, sample, max_num=max_num or task.max_num)
        except torch.OutOfMemoryError:
            if context_parallel is not None:
                raise
            torch.cuda.empty_cache()
            logger.error("%s, sample %s: out of memory, counted as wrong", task.name, sample.id)
            return Prediction(sample.id, "", sample.answer, sample.metadata, 0, 0, 0.0, 0.0, failure="out of memory")

    return answer


def _ask(session: Session, task: Task, sample: Sample, *, max_num: int) -> Prediction:
    answer = session.answer(
        sample.prompt,
        [image if isinstance(image, Path) else image.open() for image in sample.images],
        videos=sample.videos,
        max_new_tokens=task.max_new_tokens,
        max_num=[min(limit or max_num, max_num) for limit in sample.tile_limits] or max_num,
        num_frames=task.num_frames,
    )
    return Prediction(
        id=sample.id,
        response=answer.text,
        answer=sample.answer,
        metadata=sample.metadata,
        num_prompt_tokens=answer.num_prompt_tokens,
        num_tiles=answer.num_tiles,
        last_position=answer.last_position,
        seconds=round(answer.seconds, 4),
    )
