"""Ask a checkpoint from the shell.

    python -m internvl.infer.chat --checkpoint DIR --image a.png b.png "What differs?"
    python -m internvl.infer.chat --checkpoint DIR --video clip.mp4 --num_frames 16 "What happens?"
    python -m internvl.infer.chat --checkpoint DIR --text report.txt "What does it conclude?"
    echo "Who are you?" | python -m internvl.infer.chat --checkpoint DIR -
    python -m internvl.infer.chat --checkpoint DIR --image a.png            # a conversation; /reset, /quit
    torchrun --nproc_per_node 4 -m internvl.infer.chat --checkpoint DIR --text book.txt "Who is the gardener?"

The answer goes to standard output as it comes, everything else to standard error. Several processes (torchrun, srun)
share one long prompt and its keys and values among them; the first one reads and writes.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from internvl.data.video import VIDEO_PLACEHOLDER, read_video_info
from internvl.errors import ConfigError, DataError, InternVLError
from internvl.infer.checkpoint import check_checkpoint
from internvl.infer.context_parallel import ContextParallel, build_context_parallel
from internvl.infer.session import DEFAULT_NUM_FRAMES, Answer, Session, Turn, check_placeholders
from internvl.model.caches import KV_CACHES
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.scaling import check_logn_scaling, parse_rope_scaling
from internvl.model.v2pe import ROPE_POS_ID_VERSIONS, check_stride
from internvl.parallel.launch import RankEnv, finish_distributed, init_distributed, read_rank_env

_EPILOG = """\
Images, then videos, then the text stand in front of the first question; images stand where it says <image> instead,
videos where it says <video>, each kind in the order of the command line. A video is a file or a folder of frames.
Without a question a conversation starts: /reset forgets what was said (images, videos and text come with the next
question again), /quit or Ctrl-D ends it, Ctrl-C cuts an answer short.
"""


@dataclass(frozen=True)
class Opening:
    """What comes with the first question.

    Attributes:
        images: Image files.
        text: Long context; None: none.
        videos: Video files or folders of frames.
    """

    images: tuple[Path, ...] = ()
    text: str | None = None
    videos: tuple[Path, ...] = ()

    def compose(self, question: str) -> str:
        """The first user message: images, videos, text, question, a line break between them.

        Images are put in front only when the question does not place them itself, and so are videos. Placeholders
        inside the text are text.
        """
        parts = []
        for placeholder, files in ((IMAGE_PLACEHOLDER, self.images), (VIDEO_PLACEHOLDER, self.videos)):
            if placeholder not in question:
                parts += [placeholder] * len(files)
        if self.text is not None:
            parts.append(self.text.replace(IMAGE_PLACEHOLDER, "< image>").replace(VIDEO_PLACEHOLDER, "< video>"))
        return "\n".join([*parts, question])


class Chat:
    """A conversation on a session that writes answers to standard output.

    Of ranks that answer together all have the same conversation; the first one alone reads and writes.

    Args:
        session: The loaded model.
        opening: What comes with the first question.
        verbose: Write sizes behind every answer to standard error.
        options: Of `Session.answer`.
    """

    def __init__(self, session: Session, opening: Opening, *, verbose: bool = False, **options: Any):
        self.session, self.opening, self.verbose = session, opening, verbose
        self.parallel = session.context_parallel or ContextParallel(None)
        self.options = options
        self.history: list[Turn] = []

    def ask(self, question: str) -> Answer:
        """Answer one question; it and the answer join the history.

        Raises:
            InternVLError: As of `Session.answer`; the history stays as it was.
        """
        prompt = question if self.history else self.opening.compose(question)
        on_text = _write_answer if self.parallel.is_first else None
        images, videos = self.opening.images, self.opening.videos
        answer = self.session.answer(
            prompt, images, videos=videos, history=self.history, on_text=on_text, **self.options
        )
        self.history.append((prompt, answer.text))
        if not self.parallel.is_first:
            return answer
        _write_answer("\n")
        if self.verbose:
            tiles = f"{answer.num_frames} frames, {answer.num_tiles} tiles" if videos else f"{answer.num_tiles} tiles"
            sys.stderr.write(
                f"{answer.num_prompt_tokens} tokens in the prompt, {answer.num_new_tokens} in the answer, "
                f"{tiles}, last position {answer.last_position:g}, {answer.seconds:.2f} seconds\n"
            )
        return answer

    def talk(self) -> None:
        """Ask what is typed, line by line, until `/quit` or the end of the input."""
        while True:
            line = self.parallel.share(_read_line() if self.parallel.is_first else None)
            if line == "/quit":
                return
            if line == "/reset":
                self.history.clear()
                continue
            if not line:
                continue
            try:
                self.ask(line)
            except InternVLError as error:  # on all ranks, see ContextParallel.fail_together
                if self.parallel.is_first:
                    sys.stderr.write(f"error: {error}\n")
            except KeyboardInterrupt:
                if self.parallel.size > 1:  # the others are in the middle of an answer
                    raise
                _write_answer("\n")


def _read_line() -> str:
    """What was typed; `/quit` for the end of the input."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        _write_answer("\n")
        return "/quit"


def _write_answer(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def parse_stride(text: str) -> float:
    """A stride from the command line; fractions are allowed."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"expected a number such as 64, 0.25 or 1/16, got {text!r}") from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help explains)\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(
        prog="python -m internvl.infer.chat",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("question", nargs="?", help="the question; - reads it from standard input; none: a conversation")
    add("--checkpoint", required=True, type=Path, help="folder of the model")
    add("--image", nargs="+", default=[], metavar="FILE",
        help="images; the last word is the question when it is neither a file nor named like an image")  # fmt: skip
    add("--video", action="append", default=[], type=Path, metavar="FILE",
        help="video file or folder of frames; may be given several times")  # fmt: skip
    add("--num_frames", type=int, default=DEFAULT_NUM_FRAMES,
        help="frames per video, spread evenly, one tile each (default: %(default)s)")  # fmt: skip
    add("--text", type=Path, metavar="FILE", help="text file that is put in front of the question")
    add("--rope_pos_id_version", choices=ROPE_POS_ID_VERSIONS,
        help="visual positions; default: v2pe_fix with a stride, otherwise the checkpoint's own")  # fmt: skip
    add("--rope_pos_id_stride", type=parse_stride, metavar="STRIDE",
        help="positions that one tile spans, such as 64, 0.25 or 1/16; default: the checkpoint's own")  # fmt: skip
    add("--rope_scaling", metavar="SCALING",
        help="scale positions, visual ones included: yarn:4, linear:2, dynamic:2 (version default only), none, or a "
        "json object; default: the checkpoint's own")  # fmt: skip
    add("--logn_scaling", type=int, metavar="TOKENS",
        help="training length beyond which queries are made longer, by log n / log TOKENS for n keys; 0: none; "
        "default: the checkpoint's own")  # fmt: skip
    add("--max_num", type=int, help="largest number of tiles per image; default: the checkpoint's own")
    add("--prefill_chunk_size", type=int, help="tokens of the prompt that pass the decoder at a time; default: all")
    add("--kv_cache", choices=KV_CACHES, default="dynamic",
        help="where keys and values are kept: dynamic grows token by token, static takes its memory at once, offloaded "
        "is main memory, quantized takes one byte per number and changes answers (default: %(default)s)")  # fmt: skip
    add("--max_new_tokens", type=int, default=1024, help="limit of an answer in tokens (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="draw answers at this temperature (default: 0, greedy)")
    add("--top_p", type=float, default=1.0,
        help="with a temperature: draw from the most probable tokens of this share (default: 1)")  # fmt: skip
    add("--seed", type=int, help="of what is drawn; default: another one every time")
    add("--device", choices=("cpu", "cuda"), help="default: cuda when there is a GPU")
    add("--verbose", action="store_true",
        help="write numbers of tokens, frames and tiles, the last position and seconds behind an answer")  # fmt: skip
    return parser


def _separate_question(images: Sequence[str], question: str | None) -> tuple[tuple[Path, ...], str | None]:
    """`--image a.png b.png "question"` gives argparse three images; the last one is told by its looks."""
    if question is None and images and not _looks_like_a_file(images[-1]):
        *images, question = images
    return tuple(Path(image) for image in images), question


def _looks_like_a_file(word: str) -> bool:
    # os.path.isfile, because it takes any text: a long question is no valid file name, which Path.is_file raises for.
    return os.path.isfile(word) or os.path.splitext(word)[1].lower() in Image.registered_extensions()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"text file {path} cannot be read: {error}; expected a file of UTF-8 text") from error


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
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is no UTF-8 text: {error}; expected the question in UTF-8") from error


def _join_ranks(env: RankEnv, device: str | None) -> ContextParallel | None:
    """All processes of the run in one group; None for one process."""
    if env.world_size == 1:
        return None
    init_distributed(env, device="cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
    return build_context_parallel(env.world_size)


def _place(device: str | None, env: RankEnv) -> str | None:
    """The device of this process: every rank has a GPU of its own."""
    if env.world_size == 1 or device == "cpu" or not torch.cuda.is_available():
        return device
    return f"cuda:{env.local_rank}"


def _run(arguments: argparse.Namespace, env: RankEnv) -> None:
    images, question = _separate_question(arguments.image, arguments.question)
    # What takes no time is checked before the model is loaded.
    missing = next((image for image in images if not image.is_file()), None)
    if missing is not None:
        raise DataError(f"image {missing} is no file; correct the path (a question goes in front of --image)")
    for video in arguments.video:
        read_video_info(video)
    text = None if arguments.text is None else _read_text(arguments.text)
    opening = Opening(images, text, videos=tuple(arguments.video))
    version = arguments.rope_pos_id_version
    if arguments.rope_pos_id_stride is not None:
        check_stride(version or "v2pe_fix", arguments.rope_pos_id_stride)
    scaling = None if arguments.rope_scaling is None else parse_rope_scaling(arguments.rope_scaling)
    if scaling is not None and (version or arguments.rope_pos_id_stride):
        scaling.check_version(version or "v2pe_fix")
    check_logn_scaling(arguments.logn_scaling or None, source="--logn_scaling")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch sees no GPU; leave the option out or pass cpu")
    parallel = _join_ranks(env, arguments.device)
    together = parallel or ContextParallel(None)
    with together.fail_together():
        question = _read_question(question) if together.is_first else None
    question = together.share(question)
    if question is not None:
        check_placeholders([opening.compose(question)], len(images), len(opening.videos))
    check_checkpoint(arguments.checkpoint)
    session = Session.from_pretrained(
        arguments.checkpoint,
        device=_place(arguments.device, env),
        rope_scaling=scaling,
        logn_scaling=arguments.logn_scaling,
        rope_pos_id_version=version,
        rope_pos_id_stride=arguments.rope_pos_id_stride,
        max_num=arguments.max_num,
        num_frames=arguments.num_frames,
        prefill_chunk_size=arguments.prefill_chunk_size,
        kv_cache=arguments.kv_cache,
        context_parallel=parallel,
    )
    options = {name: getattr(arguments, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    chat = Chat(session, opening, verbose=arguments.verbose, **options)
    if question is None:
        chat.talk()
    else:
        chat.ask(question)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    transformers_logging.disable_progress_bar()
    try:
        _run(arguments, read_rank_env())
    except InternVLError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        _write_answer("\n")
        return 130
    return 0


if __name__ == "__main__":
    exit_code = main()
    if exit_code == 0:
        finish_distributed()
    sys.exit(exit_code)
