"""English dictionary for the answer rewriting of Long-VQA: roots of `-ing` forms and singulars of nouns.

The published scorer uses NLTK's word list and WordNet. This module reads their data files (`python -m nltk.downloader
words wordnet`), so it does not need NLTK and does not depend on its version. Without the files, `RuleLexicon` goes by
spelling. Scores then differ slightly from the published scorer's, so reports name the lexicon.
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
    """What the rewriting needs to know."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    def find_root(self, stem: str) -> str | None:
        """The word to which `ing` was added, from its lower-case text without the `ing`; None if there is none."""
        ...

    def find_singular(self, noun: str) -> str:
        """Base form of a lower-case noun; the noun itself if there is none."""
        ...


@dataclass(frozen=True)
class WordNetLexicon:
    """NLTK's word list and WordNet 3.0."""

    words: frozenset[str] = field(repr=False)
    nouns: frozenset[str] = field(repr=False)  # lemmas of WordNet
    irregular: Mapping[str, tuple[str, ...]] = field(repr=False)  # base forms of irregular plurals (`noun.exc`)
    name: str = "wordnet"  # for reports

    def find_root(self, stem: str) -> str | None:
        """The first word among the stem (`walk`), the stem without a doubled letter (`run`) and the stem with `e`."""
        candidates = [stem, *([stem[:-1]] if stem[-2:-1] == stem[-1:] else []), f"{stem}e"]
        return next((form for form in candidates if form in self.words), None)

    def find_singular(self, noun: str) -> str:
        """The shortest known form among the noun and its base forms, as in NLTK's WordNetLemmatizer (3.10)."""
        regular = (noun.removesuffix(old) + new for old, new in _SUFFIXES if noun.endswith(old))
        candidates = (noun, *self.irregular.get(noun, regular))
        return min((form for form in candidates if form in self.nouns), key=len, default=noun)


def find_nltk_folders() -> list[Path]:
    """Folders where NLTK keeps its data: NLTK_DATA, home, the Python installation, and the usual system folders."""
    named = [Path(part) for part in os.environ.get("NLTK_DATA", "").split(os.pathsep) if part]
    prefixes = [Path(sys.prefix), *(Path(sys.prefix) / part for part in ("share", "lib"))]
    system = [Path(part) for part in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")]
    return [*named, *(folder / "nltk_data" for folder in (Path.home(), *prefixes, *system))]


def load_lexicon(folders: Iterable[Path] | None = None) -> Lexicon:
    """The exact lexicon if a folder has NLTK's `words` and `wordnet` (unpacked or as zip files), else the rules.

    `folders` have the layout of `nltk_data`; None stands for `find_nltk_folders()`.
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
    """Texts of a corpus's files, from the first folder with the first of them; other files may be missing."""
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
