"""V2PE checkpoints as a model of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), named `v2pe`.

    python -m lmms_eval --model v2pe --model_args pretrained=CKPT,rope_pos_id_version=v2pe_fix,rope_pos_id_stride=64 \\
        --tasks mme --batch_size 1

lmms-eval finds the model by the entry point `lmms_eval.models` of this package (see eval/bridges/manifest.py). It is a
model of its chat interface: pictures stay where a task puts them among the text.
"""

from collections.abc import Sequence
from typing import Any

import torch

from eval.bridges.conversation import DEFAULT_MAX_NEW_TOKENS, Message, Part, ask, build_question, load_session
from internvl.data.video import VideoClip
from internvl.errors import ConfigError, MissingDependencyError
from internvl.parallel.launch import read_rank_env

try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise MissingDependencyError(f"lmms-eval cannot be imported ({error}); pip install lmms-eval") from error


class V2PE(lmms):
    """A session behind lmms-eval's chat interface.

    Args:
        pretrained: Folder of the checkpoint.
        rope_pos_id_version: `default`, `v2pe_fix` or `v2pe_rnd`; None as of `Session`.
        rope_pos_id_stride: Positions that one tile spans, such as 64 or `1/16`; None: the checkpoint's own.
        rope_scaling: Scaling of positions as of `eval.run`; None: the checkpoint's own.
        max_num: Largest number of tiles per picture; None: the checkpoint's own.
        num_frames: Frames per video; None as of `Session`.
        dtype: Name of the weights' type; None: by device.
        device: `cuda` takes this process's GPU; None: cuda when there is a GPU.
        prefill_chunk_size: Tokens of a prompt that pass the decoder at a time; None: all at once.
        kv_cache: Where keys and values are kept.
        batch_size: Must be 1; questions are answered one by one.
        max_batch_size: Not used; lmms-eval gives it to every model.

    Raises:
        ConfigError: A value is malformed or out of range.
        CheckpointError: The checkpoint cannot be loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: str | float | None = None,
        rope_scaling: str | None = None,
        max_num: int | str | None = None,
        num_frames: int | str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        prefill_chunk_size: int | str | None = None,
        kv_cache: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
    ):
        super().__init__()
        if str(batch_size) != "1":
            raise ConfigError(f"batch_size must be 1, got {batch_size}; start more processes instead")
        env = read_rank_env()
        self._rank, self._world_size = env.rank, env.world_size
        self.session = load_session(
            pretrained,
            rope_pos_id_version=rope_pos_id_version,
            rope_pos_id_stride=rope_pos_id_stride,
            rope_scaling=rope_scaling,
            max_num=max_num,
            num_frames=num_frames,
            dtype=dtype,
            device=_place(device, env.local_rank),
            prefill_chunk_size=prefill_chunk_size,
            kv_cache=kv_cache,
        )

    @property
    def device(self) -> torch.device:
        """Of the model; lmms-eval gathers its counts there."""
        return self.session.model.device

    @property
    def batch_size(self) -> int:
        """Questions per forward pass."""
        return 1

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer per request, in order.

        Raises:
            ConfigError: A message that cannot be asked.
        """
        answers = []
        for request in requests:
            context, make_messages, options, doc_id, task, split = request.args
            messages = read_messages(make_messages(self.task_dict[task][split][doc_id]))
            answers.append(
                cut_at(ask(self.session, build_question(messages), **_choose(options)), options.get("until"))
            )
            self.cache_hook.add_partial("generate_until", (context, options), answers[-1])
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Tasks that ask again depending on the answer are not supported.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("the v2pe model answers one round; choose tasks of output type generate_until")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Tasks that compare likelihoods of given answers are not supported.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("the v2pe model answers by generation; choose tasks of output type generate_until")


def _place(device: str | None, local_rank: int) -> str | None:
    """The GPU of this process where only `cuda` is asked for."""
    device = device or ("cuda" if torch.cuda.is_available() else None)
    return f"cuda:{local_rank}" if device == "cuda" else device


def _choose(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `ask`: greedy unless a temperature is asked for and sampling is not forbidden."""
    temperature = float(options.get("temperature") or 0.0)
    samples = temperature > 0 and options.get("do_sample") is not False
    return {
        "max_new_tokens": int(options.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS),
        **({"temperature": temperature, "top_p": float(options.get("top_p") or 1.0)} if samples else {}),
    }


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of the stop strings; an empty one does not stop."""
    stops = [until] if isinstance(until, str) else list(until or ())
    places = [text.find(stop) for stop in stops if stop]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def read_messages(messages: Any) -> list[Message]:
    """lmms-eval's messages: dicts (or objects) of `role` and `content`, a list of typed parts.

    Raises:
        ConfigError: A part of another type than text, image or video.
    """
    return [Message(_get(message, "role"), tuple(map(_read_part, _get(message, "content")))) for message in messages]


def _read_part(part: Any) -> Part:
    kind = _get(part, "type")
    if kind == "text":
        return Part("text", _get(part, "text"))
    if kind == "image":
        return Part("image", _get(part, "url"))
    if kind == "video":
        start, end = _get(part, "start_time"), _get(part, "end_time")
        path = _get(part, "url")
        has_bounds = start is not None and end is not None and isinstance(path, str)
        return Part("video", VideoClip(path, clip=(float(start), float(end))) if has_bounds else path)
    raise ConfigError(f"a message holds a part of type {kind!r}; the v2pe model takes text, image and video")


def _get(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, dict) else getattr(record, name, None)
