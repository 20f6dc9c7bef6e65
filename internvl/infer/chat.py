"""Ask a checkpoint from the shell.

    python -m internvl.infer.chat DIR --image a.png b.png "What differs?"
    python -m internvl.infer.chat DIR --video clip.mp4 --num_frames 16 "What happens?"
    python -m internvl.infer.chat DIR --text report.txt "What does it conclude?"
    echo "Who are you?" | python -m internvl.infer.chat DIR -
    python -m internvl.infer.chat DIR --image a.png            # a conversation; /help
    torchrun --nproc_per_node 4 -m internvl.infer.chat DIR --text book.txt "Who is the gardener?"

The answer goes to standard output as it comes, everything else to standard error. Several processes (torchrun, srun)
share one long prompt and its keys and values among them; the first one reads and writes.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from internvl.command import command
from internvl.data.prompt import check_placeholders
from internvl.data.storage.media import stamp_media
from internvl.data.storage.remote import find_scheme
from internvl.data.storage.text import decode_text, read_text, unify_line_ends
from internvl.data.video import read_video_info
from internvl.errors import DataError
from internvl.infer.checkpoint import check_checkpoint
from internvl.infer.context_parallel import ContextParallel, build_context_parallel
from internvl.infer.flags import add_flags, from_arguments, name_checkpoint
from internvl.infer.session import Session
from internvl.infer.settings import InferenceSettings, Sampling
from internvl.infer.terminal import Chat, Opening
from internvl.parallel.launch import RankEnv, finish_distributed, init_distributed, read_rank_env
from internvl.parser import CommandParser

_EPILOG = """\
Images, then videos, then the text stand in front of the first question; images stand where it says <image> instead,
videos where it says <video>, each kind in the order of the command line. A video is a file or a folder of frames.
Without a question a conversation starts: /help lists its commands (/image, /video, /text, /stride, /system, /clear,
/save, /quit), Ctrl-D ends it, Ctrl-C cuts an answer short.
"""
# Settings that the command chooses itself: one conversation at a time has nothing to keep for other questions.
_NOT_ASKED = ("dtype", "cache_mib", "reuse_prefix")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m internvl.infer.chat",
        often={
            "question": ["image", "video", "text", "num_frames", "max_num", "max_new_tokens", "temperature", "verbose"],
            "positions": ["rope_pos_id_version", "rope_pos_id_stride", "rope_scaling"],
            "speed and memory": ["device", "kv_cache", "prefill_chunk_size"],
        },
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("question", nargs="?", help="the question; - reads it from standard input; none: a conversation")
    add("--checkpoint", required=True, type=Path, help="folder of the model; it may stand alone as the first word")
    add("--image", nargs="+", default=[], metavar="FILE",
        help="images: files, members of archives or URLs; the last word is the question when it is neither of these "
             "nor named like an image")  # fmt: skip
    add("--video", action="append", default=[], metavar="FILE",
        help="video (a file, a folder of frames or a URL); may be given several times")  # fmt: skip
    add("--text", type=Path, metavar="FILE", help="text file that is put in front of the question")
    add_flags(parser, InferenceSettings, leave_out=_NOT_ASKED)
    add("--max_new_tokens", type=int, default=1024, help="limit of an answer in tokens (default: %(default)s)")
    add_flags(parser, Sampling, leave_out=("num_beams",))  # an answer that is shown as it comes has one beam
    add("--verbose", action="store_true",
        help="write numbers of tokens, frames and tiles, the last position and seconds behind an answer")  # fmt: skip
    return parser


def _separate_question(images: Sequence[str], question: str | None) -> tuple[tuple[str, ...], str | None]:
    """`--image a.png b.png "question"` gives argparse three images; the last one is told by its looks."""
    if question is None and images and not _looks_like_a_file(images[-1]):
        *images, question = images
    return tuple(images), question


def _looks_like_a_file(word: str) -> bool:
    if find_scheme(word) is not None:
        return not word.split()[1:]
    # os.path.isfile, because it takes any text: a long question is no valid file name, which Path.is_file raises for.
    return os.path.isfile(word) or os.path.splitext(word)[1].lower() in Image.registered_extensions()


def _read_question(question: str | None) -> str | None:
    """The question of the command line or of standard input; None: a conversation on a terminal."""
    if question == "-":
        question = _read_standard_input()
    elif question is None:
        if sys.stdin.isatty():
            return None
        raise DataError("there is no question; put it behind the options, or - to read it from standard input")
    if not question.strip():
        raise DataError("the question is empty, expected text; put it behind the options")
    if any("\ud800" <= character <= "\udfff" for character in question):
        raise DataError("the question holds bytes that are no UTF-8, expected UTF-8 text")
    return question


def _read_standard_input() -> str:
    return unify_line_ends(decode_text(sys.stdin.buffer.read(), "standard input")).strip()


def _join_ranks(env: RankEnv, device: str | None) -> ContextParallel | None:
    """All processes of the run in one group; None for one process."""
    if env.world_size == 1:
        return None
    init_distributed(env, device="cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
    return build_context_parallel(env.world_size)


def _run(arguments: argparse.Namespace, env: RankEnv) -> None:
    images, question = _separate_question(arguments.image, arguments.question)
    # What takes no time is checked before the model is loaded.
    for image in images:
        try:
            stamp_media(image)
        except (OSError, ValueError) as error:
            raise DataError(
                f"image {image} is no file ({error}); correct the path (a question goes in front of --image)"
            ) from error
    for video in arguments.video:
        read_video_info(video)
    text = None if arguments.text is None else read_text(arguments.text)
    opening = Opening(images, text, videos=tuple(arguments.video))
    settings = from_arguments(InferenceSettings, arguments)
    sampling = from_arguments(Sampling, arguments)
    parallel = _join_ranks(env, settings.device)
    together = parallel or ContextParallel(None)
    with together.fail_together():
        question = _read_question(question) if together.is_first else None
    question = together.share(question)
    if question is not None:
        check_placeholders([opening.compose(question)], len(images), len(opening.videos))
    check_checkpoint(arguments.checkpoint)
    if parallel is not None:
        settings = settings.on_device(env)
    session = Session.from_pretrained(arguments.checkpoint, settings, context_parallel=parallel)
    chat = Chat(session, opening, max_new_tokens=arguments.max_new_tokens, sampling=sampling, verbose=arguments.verbose)
    if question is None:
        chat.talk()
    else:
        chat.ask(question)


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    transformers_logging.disable_progress_bar()
    words = name_checkpoint(sys.argv[1:] if argv is None else argv)
    _run(build_parser().parse_args(words), read_rank_env())
    return 0


if __name__ == "__main__":
    exit_code = main()
    if exit_code == 0:
        finish_distributed()
    sys.exit(exit_code)
