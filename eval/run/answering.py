"""The model's side of an evaluation: a loaded session as the function that turns samples into predictions.

    several at once  --out of memory, or one of them fails-->  one by one
    one              --out of memory-->  again, in small pieces, keys and values in main memory  -->  failed
    one              --picture, video or prompt is wrong-->  failed

A failed sample has a prediction that says why, and counts as wrong. It never ends the run, with one exception: where
processes answer together, one that runs out of memory cannot go on, because the others wait for its messages. It
leaves the failed prediction behind, so that the run continues with the next sample when it is started again.
"""

import gc
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.core.sample import Prediction, Sample
from eval.core.task import Task
from eval.run.queue import Answer, LastAnswerError
from eval.run.teacher_forcing import TeacherForcing
from internvl.errors import InternVLError, ParallelError
from internvl.infer.context_parallel import ContextParallel
from internvl.infer.session import Answer as SessionAnswer
from internvl.infer.session import Question, Session
from internvl.model.scaling import RopeScaling

logger = logging.getLogger(__name__)

RETRY_CHUNK_SIZE = 1024  # tokens that pass the decoder at a time when a prompt needed too much memory
# How torch and its libraries say it, besides torch.OutOfMemoryError: main memory, cuBLAS, cuDNN.
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "alloc_failed")


def load_answerer(
    checkpoint: Path,
    *,
    dtype: str,
    device: str,
    rope_pos_id_version: str,
    rope_pos_id_stride: float | None,
    rope_scaling: RopeScaling | None = None,
    logn_scaling: int | None = None,
    max_num: int | None,
    cache_mib: int,
    prefill_chunk_size: int | None = None,
    kv_cache: str = "dynamic",
    context_parallel: ContextParallel | None = None,
    layer_devices: Sequence[str] = (),
) -> Answer:
    """Load a checkpoint and return the function that asks it.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
    """
    positions: dict[str, Any] = {
        "rope_pos_id_version": rope_pos_id_version,
        "rope_pos_id_stride": rope_pos_id_stride,
    }
    session = Session.from_pretrained(
        checkpoint,
        dtype=getattr(torch, dtype),
        device=device,
        **positions,
        rope_scaling=rope_scaling,
        logn_scaling=logn_scaling,
        max_cache_bytes=cache_mib * 2**20,
        prefill_chunk_size=prefill_chunk_size,
        kv_cache=kv_cache,
        context_parallel=context_parallel,
        layer_devices=layer_devices,
        reuse_prefix=cache_mib > 0 and kv_cache == "dynamic" and context_parallel is None,
    )
    frugal = None
    if context_parallel is None and kv_cache != "quantized":  # whose answers depend on the pieces
        frugal = Session(
            session.model,
            session.tokenizer,
            **positions,
            max_cache_bytes=0,
            prefill_chunk_size=min(RETRY_CHUNK_SIZE, prefill_chunk_size or RETRY_CHUNK_SIZE),
            kv_cache="dynamic" if layer_devices else "offloaded",
        )
    return _Answerer(session, frugal, max_num=max_num)


class _Answerer:
    """See the top of this file.

    Args:
        session: Answers, usually.
        frugal: Answers where that took too much memory; None: nothing does.
        max_num: Largest number of tiles per image; None: the task's.
    """

    def __init__(self, session: Session, frugal: Session | None, *, max_num: int | None):
        self._session, self._frugal, self._max_num = session, frugal, max_num

    def __call__(self, task: Task, samples: Sequence[Sample]) -> list[Prediction]:
        """A prediction per sample, in order."""
        if len(samples) > 1 and task.write_gold is None:
            try:
                return self._ask_together(task, samples)
            except Exception as error:
                if not (_is_expected(error) or is_out_of_memory(error)):
                    raise
                logger.info("%s: %d questions are asked one by one (%s)", task.name, len(samples), error)
            self._release_memory()
        return [self._ask_safely(task, sample) for sample in samples]

    def _ask_together(self, task: Task, samples: Sequence[Sample]) -> list[Prediction]:
        answers = self._session.answer_batch(
            [
                Question(sample.prompt, sample.images, sample.videos, self._choose_limits(task, sample))
                for sample in samples
            ],
            max_new_tokens=task.max_new_tokens,
            num_frames=task.num_frames,
        )
        return [_write_prediction(sample, answer, answer.text) for sample, answer in zip(samples, answers, strict=True)]

    def _ask_safely(self, task: Task, sample: Sample) -> Prediction:
        start = time.perf_counter()
        prediction, reason = self._try_to_ask(self._session, task, sample)
        if prediction is None and reason is None:
            self._release_memory()
            if self._frugal is not None:
                logger.error("%s, sample %s: out of memory, tried again with less", task.name, sample.id)
                prediction, reason = self._try_to_ask(self._frugal, task, sample)
                self._release_memory()
        if prediction is not None:
            return prediction
        reason = reason or "out of memory"
        logger.error("%s, sample %s failed and counts as wrong: %s", task.name, sample.id, reason)
        return Prediction.failed(sample, reason, seconds=round(time.perf_counter() - start, 4))

    def _try_to_ask(self, session: Session, task: Task, sample: Sample) -> tuple[Prediction | None, str | None]:
        """(prediction, None), or (None, why there is none); (None, None) for too little memory.

        Raises:
            LastAnswerError: One of processes that answer together has too little memory.
        """
        try:
            return self._ask(session, task, sample), None
        except Exception as error:
            is_shared = session.context_parallel is not None
            if _is_expected(error) and not (is_shared and isinstance(error, OSError)):
                return None, str(error)
            if not is_out_of_memory(error):
                raise
            if is_shared:
                raise LastAnswerError(
                    f"{task.name}, sample {sample.id}: out of memory on one of the processes that answer together; it "
                    "counts as wrong, and the same command continues with the others (with more processes per group "
                    "or a smaller --prefill_chunk_size, --retry_failed asks it again)",
                    Prediction.failed(sample, "out of memory"),
                ) from error
        return None, None

    def _ask(self, session: Session, task: Task, sample: Sample) -> Prediction:
        forcing = TeacherForcing(session.tokenizer, task.write_gold(sample.answer)) if task.write_gold else None
        answer = session.answer(
            sample.prompt,
            sample.images,
            videos=sample.videos,
            max_new_tokens=forcing.num_tokens if forcing else task.max_new_tokens,
            logits_processor=forcing.as_list if forcing else None,
            max_num=self._choose_limits(task, sample),
            num_frames=task.num_frames,
        )
        return _write_prediction(sample, answer, forcing.read_response() if forcing else answer.text)

    def _choose_limits(self, task: Task, sample: Sample) -> int | list[int]:
        """Tiles per image: one number for all, or one each."""
        max_num = self._max_num or task.max_num
        return [min(limit or max_num, max_num) for limit in sample.tile_limits] or max_num

    def _release_memory(self) -> None:
        self._session.release_memory()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there was too little memory, on the GPU or outside of it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _is_expected(error: BaseException) -> bool:
    """Whether an error is about one sample: its files or its prompt."""
    return isinstance(error, InternVLError | OSError) and not isinstance(error, ParallelError)


def _write_prediction(sample: Sample, answer: SessionAnswer, response: str) -> Prediction:
    return Prediction(
        id=sample.id,
        response=response,
        answer=sample.answer,
        metadata=sample.metadata,
        num_prompt_tokens=answer.num_prompt_tokens,
        num_tiles=answer.num_tiles,
        last_position=answer.last_position,
        seconds=round(answer.seconds, 4),
    )
