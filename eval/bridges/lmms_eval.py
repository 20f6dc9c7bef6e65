"""V2PE checkpoints as a model of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), named `v2pe`.

    python -m lmms_eval --model v2pe --model_args pretrained=CKPT,rope_pos_id_version=v2pe_fix,rope_pos_id_stride=64 \\
        --tasks mme --batch_size 1

lmms-eval finds the model by the entry point `lmms_eval.models` of this package (see eval/bridges/manifest.py). It is a
model of its chat interface: pictures stay where a task puts them among the text.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from eval.bridges.conversation import DEFAULT_MAX_NEW_TOKENS, Message, Part, ask, build_question
from internvl.data.video import VideoClip
from internvl.errors import ConfigError, MissingDependencyError
from internvl.infer.flags import from_options
from internvl.infer.session import Session
from internvl.infer.settings import GREEDY, InferenceSettings, Sampling
from internvl.parallel.launch import read_rank_env

try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise MissingDependencyError(f"lmms-eval cannot be imported ({error}); pip install lmms-eval") from error


class Request(Protocol):
    """What the bridge reads of a request: context, maker of messages, options, and the place of the record."""

    args: tuple[str, Callable[[object], Iterable[object]], dict[str, Any], object, str, str]


class V2PE(lmms):
    """A session as lmms-eval's chat interface sees it.

    Questions are answered one by one: `batch_size` must be 1, and `max_batch_size`, which lmms-eval always gives, is
    not used. `**options` are fields of `InferenceSettings`, where values may be text; `cuda` (or no device, where there
    is a GPU) means this process's GPU.
    Raises ConfigError for an unknown option or a value that is malformed or out of range, and CheckpointError if the
    checkpoint cannot be loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
        **options: str | float | None,
    ):
        super().__init__()
        if str(batch_size) != "1":
            raise ConfigError(f"batch_size must be 1, got {batch_size}; start more processes instead")
        env = read_rank_env()
        self._rank, self._world_size = env.rank, env.world_size
        settings = from_options(InferenceSettings, options).on_device(env)
        self.session = Session.from_pretrained(pretrained, settings)

    @property
    def device(self) -> torch.device:
        """Of the model; lmms-eval gathers its counts there."""
        return self.session.model.device

    @property
    def batch_size(self) -> int:
        """Questions per forward pass."""
        return 1

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """One answer per request, in order. Raises ConfigError for a message that cannot be asked."""
        answers = []
        for request in requests:
            context, make_messages, options, doc_id, task, split = request.args
            messages = read_messages(make_messages(self.task_dict[task][split][doc_id]))
            answer = ask(
                self.session,
                build_question(messages, alpha=self.session.settings.alpha),
                max_new_tokens=int(options.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS),
                sampling=_choose_sampling(options),
            )
            answers.append(cut_at(answer, options.get("until")))
            self.cache_hook.add_partial("generate_until", (context, options), answers[-1])
        return answers

    def generate_until_multi_round(self, requests: Sequence[object]) -> list[str]:
        """Not supported: always raises ConfigError."""
        raise ConfigError("the v2pe model answers one round; choose tasks of output type generate_until")

    def loglikelihood(self, requests: Sequence[object]) -> list[tuple[float, bool]]:
        """Not supported (likelihoods of given answers): always raises ConfigError."""
        raise ConfigError("the v2pe model answers by generation; choose tasks of output type generate_until")


def _choose_sampling(options: Mapping[str, object]) -> Sampling:
    """Greedy unless a temperature is asked for and sampling is not forbidden."""
    temperature = float(str(options.get("temperature") or 0.0))
    if temperature <= 0 or options.get("do_sample") is False:
        return GREEDY
    return Sampling(temperature, top_p=float(str(options.get("top_p") or 1.0)))


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of the stop strings; an empty one does not stop."""
    stops = [until] if isinstance(until, str) else list(until or ())
    places = [text.find(stop) for stop in stops if stop]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def read_messages(messages: Iterable[object]) -> list[Message]:
    """lmms-eval's messages: dicts (or objects) of `role` and `content`, a list of typed parts.

    Raises ConfigError for a part of another type than text, image or video.
    """
    return [Message(_get(message, "role"), tuple(map(_read_part, _get(message, "content")))) for message in messages]


def _read_part(part: object) -> Part:
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


def _get(record: object, name: str) -> Any:
    return record.get(name) if isinstance(record, dict) else getattr(record, name, None)
