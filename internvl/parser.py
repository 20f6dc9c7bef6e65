"""Parsers of command lines: help in two lengths, errors of one line that say what was probably meant, config files."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from internvl.config_file import CONFIG_SUFFIXES, read_config, write_flags
from internvl.errors import did_you_mean

_INVALID_CHOICE = re.compile(r"argument (?P<name>[^:]+): invalid choice: (?P<quote>['\"])(?P<value>.*?)(?P=quote)")
_ASSIGNMENT = re.compile(r"\A[A-Za-z]\w*=", re.ASCII)
# What the user typed in place of `python -m MODULE`; set by `v2pe`.
_typed_name: str | None = None


def name_command(name: str) -> None:
    """Let parsers that are made from now on call themselves so, in their help and errors."""
    global _typed_name
    _typed_name = name


class CommandParser(argparse.ArgumentParser):
    """argparse's parser; its options are written in full.

    Args:
        often: Options that most people need, by title. `--help` shows those alone, and `--help-all` all of them.
        takes_config: The first words may be a config file, then `key=value`; both mean the option of that name
            (internvl/config_file.py), and what comes later decides.
        options: As argparse takes them.
    """

    def __init__(
        self,
        *positional: Any,
        often: Mapping[str, Sequence[str]] | None = None,
        takes_config: bool = False,
        **options: Any,
    ) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*positional, **options)
        self.prog = _typed_name or self.prog
        self.often, self.takes_config, self.shows_all = often, takes_config, False
        if often:
            self.add_argument(
                "--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help="show all options and exit"
            )

    def format_help(self) -> str:
        """The whole help, or the short one where that is another and nobody asked for the whole."""
        if self.shows_all or not self.often:
            return super().format_help()
        named = {action.dest: action for action in self._actions}
        sections = {
            "arguments": [action for action in self._actions if not action.option_strings or action.required],
            **{title: [named[name] for name in names] for title, names in self.often.items()},
            "help": [named["help"], named["help_all"]],
        }
        formatter = self._get_formatter()
        formatter._format_action_invocation = _write_invocation  # type: ignore[method-assign]
        formatter.add_usage(self.usage, sections["arguments"], [])
        formatter.add_text(self.description)
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse does, after the config file is turned into options."""
        if self.takes_config and args is not None:
            args = self._expand_config(args)
        return super().parse_known_args(args, namespace)

    def _expand_config(self, words: Sequence[str]) -> list[str]:
        words, flags = list(words), []
        if words and words[0].endswith(CONFIG_SUFFIXES):
            path = Path(words.pop(0))
            flags += write_flags(read_config(path), self._actions, where=str(path))
        while words and _ASSIGNMENT.match(words[0]):
            key, _, text = words.pop(0).partition("=")
            flags += write_flags({key: text}, self._actions, where=f"{key}={text}")
        return flags + words

    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        self.exit(2, f"error: {message}{self._guess(message)}; {self.prog} --help lists what it takes\n")

    def _guess(self, message: str) -> str:
        if message.startswith("unrecognized arguments:"):
            words = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
            return next(filter(None, (did_you_mean(word, self._list_flags()) for word in words)), "")
        if found := _INVALID_CHOICE.match(message):
            named = (a for a in self._actions if found["name"] in ("/".join(a.option_strings), a.metavar, a.dest))
            return did_you_mean(found["value"], [str(choice) for a in named for choice in a.choices or ()])
        return ""

    def _list_flags(self) -> Iterable[str]:
        return (flag for a in self._actions if a.help != argparse.SUPPRESS for flag in a.option_strings)


def _write_invocation(action: argparse.Action) -> str:
    """An option and its value, in the one spelling that has no - inside."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    flag = max(action.option_strings, key=lambda name: (len(name), "_" in name))
    if action.nargs == 0:
        return flag
    choices = ",".join(map(str, action.choices or ()))
    return f"{flag} {action.metavar or (choices and f'{{{choices}}}') or 'VALUE'}"


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        if isinstance(parser, CommandParser):
            parser.shows_all = True
        parser.print_help()
        parser.exit()
