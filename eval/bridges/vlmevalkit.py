"""V2PE checkpoints as a model of VLMEvalKit (https://github.com/open-compass/VLMEvalKit).

    from eval.bridges.vlmevalkit import register
    register("V2PE-64", pretrained=CKPT, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=64)

`register` adds the model to VLMEvalKit's table of models, where `run.py --model V2PE-64` in the same process finds it.
Or, in one line, from VLMEvalKit's folder:

    python -m eval.bridges.vlmevalkit --name V2PE-64 --pretrained CKPT --rope_pos_id_version v2pe_fix \\
        --rope_pos_id_stride 64 -- run.py --data MMBench_DEV_EN --model V2PE-64
"""

import argparse
import runpy
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eval.bridges.conversation import DEFAULT_MAX_NEW_TOKENS, Message, Part, ask, build_question
from internvl.command import command
from internvl.errors import ConfigError, MissingDependencyError
from internvl.infer.flags import add_flags, from_options
from internvl.infer.session import Session
from internvl.infer.settings import InferenceSettings
from internvl.parser import CommandParser

try:
    from vlmeval.vlm.base import BaseModel
except ImportError as error:
    raise MissingDependencyError(
        f"VLMEvalKit cannot be imported ({error}); install it as its page says: https://github.com/open-compass/VLMEvalKit"
    ) from error

Entry = Mapping[str, Any]  # a typed part of a message (type, value), or a message (role, content)


class V2PE(BaseModel):
    """A session for VLMEvalKit's `generate`; prompts are those of its data sets.

    `**options` are fields of `InferenceSettings`, where values may be text.
    Raises ConfigError for an unknown option or a value that is malformed or out of range, and CheckpointError if the
    checkpoint cannot be loaded.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(
        self, pretrained: str, max_new_tokens: int | str = DEFAULT_MAX_NEW_TOKENS, **options: str | float | None
    ):
        super().__init__()
        self.max_new_tokens = int(max_new_tokens)
        self.session = Session.from_pretrained(pretrained, from_options(InferenceSettings, options))

    def generate_inner(self, message: Sequence[Entry], dataset: str | None = None) -> str:
        """The answer to one message of typed parts."""
        return self._ask(read_messages(message))

    def chat_inner(self, message: Sequence[Entry], dataset: str | None = None) -> str:
        """The answer to the last message of a conversation of `role` and `content`."""
        messages = [Message(str(entry["role"]), tuple(map(_read_part, entry["content"]))) for entry in message]
        return self._ask(messages)

    def _ask(self, messages: Sequence[Message]) -> str:
        question = build_question(messages, alpha=self.session.settings.alpha)
        return ask(self.session, question, max_new_tokens=self.max_new_tokens)


def read_messages(parts: Sequence[Entry]) -> list[Message]:
    """One user message, and a system message of the parts that say so.

    Raises ConfigError for a part of another type than text, image or video.
    """
    system = tuple(_read_part(part) for part in parts if part.get("role") == "system")
    user = tuple(_read_part(part) for part in parts if part.get("role") != "system")
    return [*([Message("system", system)] if system else []), Message("user", user)]


def _read_part(part: Entry) -> Part:
    kind = part.get("type")
    if kind not in ("text", "image", "video"):
        raise ConfigError(f"a message holds a part of type {kind!r}; the V2PE model takes text, image and video")
    return Part(kind, part["value"])


def register(name: str, **options: Any) -> None:
    """Make `run.py --model NAME` of VLMEvalKit mean this model, in this process; options as for `V2PE`.

    Raises ConfigError if VLMEvalKit already knows the name.
    """
    from vlmeval.config import supported_VLM

    if name in supported_VLM:
        raise ConfigError(f"VLMEvalKit has a model named {name!r} already; choose another name")
    supported_VLM[name] = partial(V2PE, **options)


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Register a model and start a script of VLMEvalKit; returns the exit code (2 for an error of the user's)."""
    parser = CommandParser(
        prog="python -m eval.bridges.vlmevalkit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", required=True, help="name of the model for --model")
    parser.add_argument("--pretrained", required=True, help="folder of the checkpoint")
    parser.add_argument("--max_new_tokens", type=int, default=DEFAULT_MAX_NEW_TOKENS)
    add_flags(parser, InferenceSettings, leave_out=("reuse_prefix",))
    parser.add_argument("command", nargs="+", metavar="-- run.py ...", help="script of VLMEvalKit and its arguments")
    args = vars(parser.parse_args(argv))
    command, name = args.pop("command"), args.pop("name")
    if not Path(command[0]).is_file():
        raise ConfigError(f"{command[0]} not found; start this in VLMEvalKit's folder, where run.py is")
    register(name, **{key: value for key, value in args.items() if value is not None})
    sys.argv = list(command)
    runpy.run_path(command[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
