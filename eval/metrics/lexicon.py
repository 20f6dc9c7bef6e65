"""English words for the answer rewriting of Long-VQA: is this a word, and what is the singular of this noun?

The published scorer asks NLTK's word list and WordNet. Their data (`python -m nltk.downloader words wordnet`) are read
here as files, so NLTK itself is not needed and its version does not matter. Without them `RuleLexicon` answers by
spelling: scores then differ a little from the published scorer's, and reports must name the lexicon.
"""

import os
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from eval.metrics.spelling import RuleLexicon

_SUFFIXES = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


class Lexicon(Protocol):
    """What the rewriting asks.

    Attributes:
        name: For reports.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    def find_root(self, stem: str) -> str | None:
        """The word to which `ing` was added, from lower-case text without the `ing`; None if there is none."""
        ...

    def find_singular(self, noun: str) -> str:
        """Base form of a lower-case noun; the text itself if there is none."""
        ...


@dataclass(frozen=True)
class WordNetLexicon:
    """NLTK's word list and WordNet 3.0.

    Attributes:
        words: Word list.
        nouns: Lemmas of WordNet's nouns.
        irregular: Base forms of irregular plurals (`noun.exc`).
        name: For reports.
    """

    words: frozenset[str] = field(repr=False)
    nouns: frozenset[str] = field(repr=False)
    irregular: Mapping[str, tuple[str, ...]] = field(repr=False)
    name: str = "wordnet"

    def find_root(self, stem: str) -> str | None:
        """The stem (`walk`), the stem without a doubled letter (`run`), or the stem and e (`make`): the first word."""
        candidates = [stem, *([stem[:-1]] if stem[-2:-1] == stem[-1:] else []), f"{stem}e"]
        return next((form for form in candidates if form in self.words), None)

    def find_singular(self, noun: str) -> str:
        """The shortest known one of the noun and its base forms, as NLTK's WordNetLemmatizer chooses (3.10)."""
        regular = (noun.removesuffix(old) + new for old, new in _SUFFIXES if noun.endswith(old))
        candidates = (noun, *self.irregular.get(noun, regular))
        return min((form for form in candidates if form in self.nouns), key=len, default=noun)


def find_nltk_folders() -> list[Path]:
    """Where NLTK keeps its data: NLTK_DATA, the home folder, the Python installation, the usual system folders."""
    named = [Path(part) for part in os.environ.get("NLTK_DATA", "").split(os.pathsep) if part]
    prefixes = [Path(sys.prefix), *(Path(sys.prefix) / part for part in ("share", "lib"))]
    system = [Path(part) for part in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")]
    return [*named, *(folder / "nltk_data" for folder in (Path.home(), *prefixes, *system))]


def load_lexicon(folders: Iterable[Path] | None = None) -> Lexicon:
    """The exact lexicon if a folder has NLTK's `words` and `wordnet` (unpacked or as zip files), else the rules.

    Args:
        folders: Folders in the form of `nltk_data`; None for `find_nltk_folders`.
    """
    corpora = [Path(folder) / "corpora" for folder in (find_nltk_folders() if folders is None else folders)]
    words = _read_first(corpora, "words", ("en", "en-basic"))
    wordnet = _read_first(corpora, "wordnet", ("index.noun", "noun.exc"))
    if words is None or wordnet is None:
        return RuleLexicon()
    return WordNetLexicon(
        words=frozenset("\n".join(words).split()),
        nouns=frozenset(line.split(" ", 1)[0] for line in wordnet[0].split("\n") if line and line[0] != " "),
        irregular={first: tuple(rest) for first, *rest in map(str.split, filter(None, wordnet[1].split("\n")))},
    )


def _read_first(corpora: Iterable[Path], name: str, files: tuple[str, ...]) -> list[str] | None:
    """Texts of the files of one corpus from the first folder that has the first of them; others may be missing."""
    for folder in corpora:
        if (folder / name / files[0]).is_file():
            paths = [folder / name / file for file in files]
            return [path.read_text(encoding="utf-8") if path.is_file() else "" for path in paths]
        if (folder / f"{name}.zip").is_file():
            with zipfile.ZipFile(folder / f"{name}.zip") as archive:
                members = set(archive.namelist())
                return [
                    archive.read(f"{name}/{file}").decode() if f"{name}/{file}" in members else "" for file in files
                ]
    return None
