"""The model's side of an evaluation: a loaded session as the function that turns samples into predictions.

    several at once  --out of memory, or one of them fails-->  one by one
    one              --out of memory-->  again, in small pieces, keys and values in main memory  -->  failed
    one              --picture, video or prompt is wrong-->  failed

A failed sample has a prediction that says why, counts as wrong and does not end the run. One exception: a process that
answers together with others cannot go on without memory, because they wait for its messages. It saves the failed
prediction, so that the next start continues with the next sample.
"""

import gc
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.core.sample import Prediction, Sample, show_transparency
from eval.core.task import Task
from eval.run.queue import Answer, LastAnswerError
from eval.run.teacher_forcing import TeacherForcing
from internvl.data.storage.outage import is_system_fault
from internvl.errors import InternVLError, ParallelError
from internvl.infer.context_parallel import ContextParallel
from internvl.infer.question import Question
from internvl.infer.session import Answer as SessionAnswer
from internvl.infer.session import Session
from internvl.infer.settings import GREEDY, InferenceSettings, Sampling

logger = logging.getLogger(__name__)

RETRY_CHUNK_SIZE = 1024  # tokens that pass the decoder at a time when a prompt needed too much memory
# How torch and its libraries say it, besides torch.OutOfMemoryError: main memory, cuBLAS, cuDNN.
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "alloc_failed")


def load_answerer(
    checkpoint: Path,
    settings: InferenceSettings,
    *,
    sampling: Sampling = GREEDY,
    context_parallel: ContextParallel | None = None,
    layer_devices: Sequence[str] = (),
) -> Answer:
    """Load a checkpoint and return the function that asks it. Raises CheckpointError if it cannot be loaded."""
    # Beams of a kept prompt would change it.
    is_one_answer = context_parallel is None and sampling.num_beams == 1
    can_keep = settings.cache_mib > 0 and settings.kv_cache == "dynamic" and is_one_answer
    session = Session.from_pretrained(
        checkpoint,
        settings,
        context_parallel=context_parallel,
        layer_devices=layer_devices,
        reuse_prefix=can_keep,
    )
    low_memory = None
    if context_parallel is None and settings.kv_cache != "quantized":  # whose answers depend on the pieces
        low_memory = Session(
            session.model,
            session.tokenizer,
            settings,
            cache_mib=0,
            prefill_chunk_size=min(RETRY_CHUNK_SIZE, settings.prefill_chunk_size or RETRY_CHUNK_SIZE),
            kv_cache="dynamic" if layer_devices else "offloaded",
        )
    return _Answerer(session, low_memory, sampling=sampling, max_num=settings.max_num)


class _Answerer:
    """Asks `session`, then `low_memory` (if any) where memory ran out; see the top of this file."""

    def __init__(self, session: Session, low_memory: Session | None, *, sampling: Sampling, max_num: int | None):
        self._session, self._low_memory, self._sampling, self._max_num = session, low_memory, sampling, max_num

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
        questions = [self._write_question(task, sample) for sample in samples]
        answers = self._session.answer_batch(questions, max_new_tokens=task.max_new_tokens)
        return [_write_prediction(sample, answer, answer.text) for sample, answer in zip(samples, answers, strict=True)]

    def _ask_safely(self, task: Task, sample: Sample) -> Prediction:
        start = time.perf_counter()
        prediction, reason = self._try_to_ask(self._session, task, sample)
        if prediction is None and reason is None:
            self._release_memory()
            if self._low_memory is not None:
                logger.error("%s, sample %s: out of memory, tried again with less", task.name, sample.id)
                prediction, reason = self._try_to_ask(self._low_memory, task, sample)
                self._release_memory()
        if prediction is not None:
            return prediction
        reason = reason or "out of memory"
        logger.error("%s, sample %s failed and counts as wrong: %s", task.name, sample.id, reason)
        return Prediction.failed(sample, reason, seconds=round(time.perf_counter() - start, 4))

    def _try_to_ask(self, session: Session, task: Task, sample: Sample) -> tuple[Prediction | None, str | None]:
        """(prediction, None), or (None, why there is none); (None, None) for too little memory."""
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
                    [Prediction.failed(sample, "out of memory")],
                ) from error
        return None, None

    def _ask(self, session: Session, task: Task, sample: Sample) -> Prediction:
        forcing = TeacherForcing(session.tokenizer, task.write_gold(sample.answer)) if task.write_gold else None
        answer = session.ask(
            self._write_question(task, sample),
            max_new_tokens=forcing.num_tokens if forcing else task.max_new_tokens,
            sampling=Sampling(logits_processor=forcing.as_list) if forcing else self._sampling,
        )
        return _write_prediction(sample, answer, forcing.read_response() if forcing else answer.text)

    def _write_question(self, task: Task, sample: Sample) -> Question:
        max_num = self._max_num or task.max_num
        limits = [min(limit or max_num, max_num) for limit in sample.tile_limits]
        images = show_transparency(sample.images, self._session.settings.alpha)
        shown = (images, sample.videos, limits or max_num, task.num_frames)
        if sample.joined_prompt is not None and self._session.settings.rope_pos_id_version == "default":
            return Question(sample.joined_prompt, *shown, is_joined=True)
        return Question(sample.prompt, *shown)

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
    """Whether an error is about one sample: its files or its prompt. Faults of the machine are about none."""
    is_of_sample = isinstance(error, InternVLError | OSError) and not isinstance(error, ParallelError)
    return is_of_sample and not is_system_fault(error)


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
