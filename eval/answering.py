"""The model's side of an evaluation: a loaded session as the function that turns a sample into a prediction."""

import logging
from pathlib import Path

import torch

from eval.core.runner import Answer
from eval.core.sample import Prediction, Sample
from eval.core.task import Task
from internvl.infer.session import Session

logger = logging.getLogger(__name__)


def load_answerer(
    checkpoint: Path,
    *,
    dtype: str,
    device: str,
    rope_pos_id_version: str,
    rope_pos_id_stride: float | None,
    max_num: int | None,
    cache_mib: int,
    prefill_chunk_size: int | None = None,
) -> Answer:
    """Load a checkpoint and return the function that asks it.

    Running out of GPU memory fails one sample, not the run; the sample is counted as wrong.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
    """
    session = Session.from_pretrained(
        checkpoint,
        dtype=getattr(torch, dtype),
        device=device,
        rope_pos_id_version=rope_pos_id_version,
        rope_pos_id_stride=rope_pos_id_stride,
        max_cache_bytes=cache_mib * 2**20,
        prefill_chunk_size=prefill_chunk_size,
    )

    def answer(task: Task, sample: Sample) -> Prediction:
        try:
            return _ask(session, task, sample, max_num=max_num or task.max_num)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            logger.error("%s, sample %s: out of memory, counted as wrong", task.name, sample.id)
            return Prediction(sample.id, "", sample.answer, sample.metadata, 0, 0, 0.0, 0.0, failure="out of memory")

    return answer


def _ask(session: Session, task: Task, sample: Sample, *, max_num: int) -> Prediction:
    answer = session.answer(sample.prompt, sample.images, max_new_tokens=task.max_new_tokens, max_num=max_num)
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
