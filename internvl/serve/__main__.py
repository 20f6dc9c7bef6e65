"""Serve a checkpoint: OpenAI's chat completions, and a chat page in the browser.

    python -m internvl.serve CKPT
    python -m internvl.serve CKPT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 16 --max_num 6 --port 8000

Settings of the model are the defaults of requests, which may ask for other positions. Ctrl-C and SIGTERM let running
requests finish for `--grace_s` seconds.
"""

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from transformers.utils import logging as transformers_logging

from internvl.command import command
from internvl.errors import ConfigError
from internvl.infer.checkpoint import check_checkpoint
from internvl.infer.flags import add_flags, from_arguments
from internvl.infer.session import Session
from internvl.infer.settings import InferenceSettings
from internvl.parser import CommandParser
from internvl.serve.answering import Service
from internvl.serve.app import build_app
from internvl.serve.options import ServerOptions

logger = logging.getLogger(__name__)

_MORE_GRACE_S = 5  # for requests that are still being received


class _Server(uvicorn.Server):
    """uvicorn's server, which waits for open requests when it is stopped, and after some time stops the engine, too."""

    def __init__(self, config: uvicorn.Config, *, grace_s: float):
        super().__init__(config)
        self._grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: Service = self.config.app.state.service  # type: ignore[union-attr]
        asyncio.get_running_loop().call_later(self._grace_s, service.engine.stop)
        await super().shutdown(sockets)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m internvl.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        often={
            "server": ["host", "port", "api_key", "allowed_media_root", "max_prompt_tokens", "max_batch", "timeout_s"],
            "model": ["rope_pos_id_version", "rope_pos_id_stride", "max_num", "dtype", "device"],
        },
    )
    parser.add_argument("checkpoint", type=Path, help="folder of the model")
    add_flags(parser, ServerOptions)
    add_flags(parser, InferenceSettings, leave_out=("reuse_prefix",))
    return parser


def _run(arguments: argparse.Namespace) -> None:
    options = from_arguments(ServerOptions, arguments)
    # Questions that follow each other in a conversation begin the same.
    settings = from_arguments(InferenceSettings, arguments, reuse_prefix=arguments.kv_cache == "dynamic")
    if options.allowed_media_root is not None and not options.allowed_media_root.is_dir():
        raise ConfigError(f"--allowed_media_root {options.allowed_media_root} is no folder; correct the path")
    check_checkpoint(arguments.checkpoint)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.create_server((options.host, options.port), family=family) as listener:
        session = Session.from_pretrained(arguments.checkpoint, settings)
        name = options.model_name or arguments.checkpoint.resolve().name
        app = build_app(session, options, model_name=name)
        host = f"[{options.host}]" if ":" in options.host else options.host
        logger.info("serving %s at http://%s:%d", name, host, listener.getsockname()[1])
        if not options.is_local and options.key is None:
            logger.warning("anyone who reaches %s may ask: there is no --api_key", options.host)
        config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, lifespan="on")
        config.timeout_graceful_shutdown = int(options.grace_s) + _MORE_GRACE_S
        server = _Server(config, grace_s=options.grace_s)
        server.run(sockets=[listener])
        if server.started:  # it ends by a signal only, and asyncio may swallow the Ctrl-C that uvicorn raises again
            raise KeyboardInterrupt


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    transformers_logging.disable_progress_bar()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    words = sys.argv[1:] if argv is None else argv
    # `--checkpoint FOLDER`, as `v2pe chat` and `v2pe eval` take it, is the folder alone.
    words = [word.removeprefix("--checkpoint=") for word in words if word != "--checkpoint"]
    _run(build_parser().parse_args(words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
