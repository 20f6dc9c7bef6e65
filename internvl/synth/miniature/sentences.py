"""English text that ships with Python: filler for contexts, and training text of the tiny tokenizer.

The texts of `help()` (`pydoc_data.topics`) and the docstrings of the standard library are on every machine that runs
Python, so nothing is downloaded.
"""

import importlib
import re
import zlib
from collections.abc import Iterator
from functools import cache

from internvl.errors import DataError
from internvl.synth.forms import Split
from internvl.synth.miniature.vocabulary import CATEGORIES, ORDINALS, list_values

# Modules of the standard library with much prose in their docstrings, cheap to import on every platform.
_MODULES = (
    "argparse", "ast", "bisect", "calendar", "collections", "configparser", "contextlib", "copy", "csv", "dataclasses",
    "datetime", "decimal", "difflib", "email.message", "enum", "fractions", "functools", "heapq", "inspect",
    "ipaddress", "json", "logging", "mailbox", "optparse", "os", "pathlib", "pdb", "pickle", "random", "re", "shutil",
    "socket", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "unittest.mock",
    "uuid", "zipfile",
)  # fmt: skip
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN = re.compile(r"[A-Z][a-z]+(?:,? [a-z]+)+\.")  # a capital, plain words, a full stop
_TEST_SHARE = 4  # one sentence in four belongs to the test split


@cache
def read_paragraphs() -> tuple[str, ...]:
    """Paragraphs of ASCII text, white space folded to single spaces, in a fixed order, each once."""
    folded = (" ".join(text.split()) for text in _read_texts())
    return tuple(dict.fromkeys(text for text in folded if text and text.isascii()))


def _read_texts() -> Iterator[str]:
    topics = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield from topics[name].split("\n\n")
    for name in _MODULES:
        module = importlib.import_module(name)
        members = (member for _, member in sorted(vars(module).items()) if callable(member))
        for owner in (module, *members):
            text = getattr(owner, "__doc__", None)
            if isinstance(text, str):
                yield from text.split("\n\n")


@cache
def read_sentences(split: Split, *, max_characters: int = 40) -> tuple[str, ...]:
    """Short plain sentences of one split; the splits share none, and none holds a word that a question is about.

    Raises DataError if the texts of this Python hold no such sentence.
    """
    needle_words = {*CATEGORIES, *list_values(), *ORDINALS, "digit"}
    found = [
        sentence
        for paragraph in read_paragraphs()
        for sentence in _SENTENCE.split(paragraph)
        if len(sentence) <= max_characters
        and _PLAIN.fullmatch(sentence)
        and not needle_words.intersection(re.findall(r"[a-z]+", sentence.lower()))
    ]
    wanted = [sentence for sentence in dict.fromkeys(found) if _split_of(sentence) == split]
    if not wanted:
        raise DataError(f"no sentence of at most {max_characters} characters in Python's texts; allow longer ones")
    return tuple(wanted)


def _split_of(sentence: str) -> Split:
    return "test" if zlib.crc32(sentence.encode()) % _TEST_SHARE == 0 else "train"
