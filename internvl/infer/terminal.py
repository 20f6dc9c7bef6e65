"""A conversation in a terminal: questions, and commands that begin with a slash.

> /image a.png        pictures, videos and texts wait for the next question, and stand in front of it
> /stride 1/16        visual positions of all answers from now on
> What is this?
"""

import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from internvl.atomic import write_json
from internvl.data.storage.media import MediaPath, stamp_media
from internvl.data.storage.text import read_text
from internvl.data.video import VIDEO_PLACEHOLDER, read_video_info
from internvl.errors import ConfigError, DataError, InternVLError, did_you_mean
from internvl.infer.context_parallel import ContextParallel
from internvl.infer.question import Turn
from internvl.infer.session import Answer, Session
from internvl.infer.settings import GREEDY, Sampling, read_stride
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.positions import ROPE_POS_ID_VERSIONS, takes_stride

QUIT = "/quit"


@dataclass(frozen=True)
class Opening:
    """What comes with a question."""

    images: tuple[MediaPath, ...] = ()  # image files or URLs
    text: str | None = None  # long context; None: none
    videos: tuple[MediaPath, ...] = ()  # video files, folders of frames, or URLs

    def compose(self, question: str) -> str:
        """The user message: images, videos, text, question, a line break between them.

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
    """A conversation on a session that writes answers to standard output, and all else to standard error.

    Of ranks that answer together all have the same conversation; the first one alone reads and writes.

    Args:
        session: The loaded model.
        opening: What comes with the first question.
        max_new_tokens: Limit of every answer in tokens.
        sampling: How tokens are chosen.
        verbose: Write sizes to standard error after every answer.
    """

    def __init__(
        self,
        session: Session,
        opening: Opening,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        verbose: bool = False,
    ):
        self.session, self.opening, self.verbose = session, opening, verbose
        self.parallel = session.context_parallel or ContextParallel(None)
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.positions = session.settings  # with those of this conversation
        self.system_message: str | None = None
        self.console = Console(stderr=True, quiet=not self.parallel.is_first, highlight=False)
        # What was said, and all that it showed; what waits for the next question.
        self.history: list[Turn] = []
        self.images: tuple[MediaPath, ...] = ()
        self.videos: tuple[MediaPath, ...] = ()
        self.waiting = opening

    def ask(self, question: str) -> Answer:
        """Answer one question; it and the answer join the history, and what waited for it is sent.

        Raises:
            InternVLError: As of `Session.answer`; the conversation stays as it was.
        """
        prompt = self.waiting.compose(question)
        images, videos = (*self.images, *self.waiting.images), (*self.videos, *self.waiting.videos)
        answer = self.session.answer(
            prompt,
            images,
            videos=videos,
            history=self.history,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            on_text=_write_answer if self.parallel.is_first else None,
            **self._details(),
        )
        self.history.append((prompt, answer.text))
        self.images, self.videos, self.waiting = images, videos, Opening()
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
        """Ask what is typed, line by line, and do what commands say, until `/quit` or the end of the input."""
        self._welcome()
        while True:
            line = self.parallel.share(_read_line() if self.parallel.is_first else None)
            if line == QUIT:
                return
            if not line:
                continue
            try:
                if line.startswith("/"):
                    self._obey(line)
                else:
                    self.ask(line)
            except InternVLError as error:  # on all ranks, see ContextParallel.fail_together
                if self.parallel.is_first:
                    sys.stderr.write(f"error: {error}\n")
            except KeyboardInterrupt:
                if self.parallel.size > 1:  # the others are in the middle of an answer
                    raise
                _write_answer("\n")

    def _welcome(self) -> None:
        if self.console.is_terminal:
            model = Path(self.session.tokenizer.name_or_path).name
            self.console.print(
                Panel(f"[bold]{model}[/], {self._describe_positions()}\n/help lists commands", expand=False)
            )

    def _describe_positions(self) -> str:
        version, stride = self.positions.rope_pos_id_version or "default", self.positions.rope_pos_id_stride
        return f"positions {version}" + (f", stride {stride:g}" if takes_stride(version) and stride else "")

    def _details(self) -> dict[str, str | int | float | None]:
        """Of every question, beside what it says and shows."""
        return {
            "rope_pos_id_version": self.positions.rope_pos_id_version,
            "rope_pos_id_stride": self.positions.rope_pos_id_stride,
            "system_message": self.system_message,
        }

    # Commands: the docstring of each is its help.

    def _obey(self, line: str) -> None:
        name, _, text = line[1:].partition(" ")
        commands = self._commands()
        if name not in commands:
            raise ConfigError(f"no command /{name}{did_you_mean(name, [*commands, QUIT[1:]])}; /help lists them")
        commands[name](text.strip())

    def _commands(self) -> dict[str, Callable[[str], None]]:
        return {
            "help": self._help, "image": self._add_images, "video": self._add_video, "text": self._add_text,
            "stride": self._set_stride, "system": self._set_system, "clear": self._clear, "save": self._save,
        }  # fmt: skip

    def _help(self, _: str) -> None:
        """:this list"""
        table = Table(box=None, show_header=False)
        for name, command in self._commands().items():
            arguments, _, text = str(command.__doc__).partition(":")
            table.add_row(f"[bold]/{name}[/] {arguments}", text)
        table.add_row(f"[bold]{QUIT}[/]", "ends the conversation, as Ctrl-D does; Ctrl-C cuts an answer short")
        self.console.print(table)

    def _add_images(self, text: str) -> None:
        """FILE ...:pictures of the next question; <image> in it places them"""
        files = _split_names(text, "/image")
        for file in files:
            try:
                stamp_media(file)
            except (OSError, ValueError) as error:
                raise DataError(f"image {file} is no file ({error}); correct the path") from error
        self.waiting = replace(self.waiting, images=(*self.waiting.images, *files))

    def _add_video(self, text: str) -> None:
        """FILE ...:videos of the next question (files, folders of frames, URLs)"""
        files = _split_names(text, "/video")
        for file in files:
            read_video_info(file)
        self.waiting = replace(self.waiting, videos=(*self.waiting.videos, *files))

    def _add_text(self, text: str) -> None:
        """FILE ...:text files that are put in front of the next question"""
        texts = [read_text(Path(file)) for file in _split_names(text, "/text")]
        self.waiting = replace(self.waiting, text="\n".join(filter(None, [self.waiting.text, *texts])))

    def _set_stride(self, text: str) -> None:
        """[STRIDE]:positions that a tile spans, such as 64 or 1/16, or a version; alone: which ones hold now"""
        if text in ROPE_POS_ID_VERSIONS:
            self.positions = self.session.settings.with_positions(text, None)
        elif text:
            self.positions = self.positions.with_positions(None, read_stride(text))
        self.console.print(self._describe_positions())

    def _set_system(self, text: str) -> None:
        """[TEXT]:system message from now on; alone: the template's own"""
        self.system_message = text or None

    def _clear(self, _: str) -> None:
        """:forgets what was said and shown; what the command line gave comes with the next question again"""
        self.history, self.images, self.videos, self.waiting = [], (), (), self.opening

    def _save(self, text: str) -> None:
        """FILE.json:writes the conversation"""
        (file,) = _split_names(text, "/save")[:1]
        turns = [{"question": question, "answer": answer} for question, answer in self.history]
        shown = {"images": [*map(str, self.images)], "videos": [*map(str, self.videos)]}
        if self.parallel.is_first:
            try:
                write_json(Path(file), {"turns": turns, **shown, **self._details()})
            except OSError as error:
                raise DataError(f"{file} cannot be written ({error}); give another place") from error
            self.console.print(f"saved {len(turns)} turns: {file}", markup=False)


def _split_names(text: str, command: str) -> list[str]:
    try:
        names = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{command}: {error}; a name with spaces stands in quotes") from error
    if not names:
        raise ConfigError(f"{command} needs the name of a file")
    return names


def _read_line() -> str:
    """What was typed; `/quit` for the end of the input."""
    with suppress(ImportError):
        import readline  # noqa: F401  -- lines can be edited, and earlier ones come back
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        _write_answer("\n")
        return QUIT


def _write_answer(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
