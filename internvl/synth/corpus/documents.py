"""A folder of texts and images as interleaved documents.

    notes.txt      paragraphs
    report.md      paragraphs, and images where `![...](figure.png)` or `<img src="figure.png">` stands
    page.html      the same with `<img>`; scripts and styles are left out
    photo.jpg      a loose image (no document shows it), to be put between paragraphs

Documents are cut into blocks: images, and text of a few hundred characters, so that depths can be met closely.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import unquote

from internvl.data.storage.media import read_image_size
from internvl.data.storage.text import read_text
from internvl.errors import ConfigError, DataError
from internvl.synth.corpus.paragraphs import cut_text, split_html, split_text

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".html", ".htm")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class TextBlock:
    """A piece of text on one line."""

    text: str


@dataclass(frozen=True)
class ImageBlock:
    """An image; `path` is relative to the corpus folder."""

    path: str


Block = TextBlock | ImageBlock


@dataclass(frozen=True)
class CorpusDocument:
    """One file: its blocks in reading order."""

    name: str
    blocks: tuple[Block, ...]

    @property
    def images(self) -> tuple[str, ...]:
        """The images that it shows."""
        return tuple(block.path for block in self.blocks if isinstance(block, ImageBlock))


@dataclass(frozen=True)
class Corpus:
    """The contents of a corpus folder."""

    documents: tuple[CorpusDocument, ...]
    loose_images: tuple[str, ...]  # images that no document shows
    problems: tuple[str, ...] = ()  # what was left out, and why

    @property
    def images(self) -> tuple[str, ...]:
        """All images, each once."""
        shown = (path for document in self.documents for path in document.images)
        return tuple(sorted({*shown, *self.loose_images}))


def read_corpus(folder: Path) -> Corpus:
    """Read every text and the header of every image below `folder`; ConfigError without folder or text."""
    if not folder.is_dir():
        raise ConfigError(f"corpus folder {folder} does not exist; expected texts ({', '.join(TEXT_SUFFIXES)}) in it")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    images, problems = _check_images(folder, [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES])
    documents = []
    for path in files:
        if path.suffix.lower() not in TEXT_SUFFIXES:
            continue
        blocks = tuple(_read_blocks(path, folder, images, problems))
        if any(isinstance(block, TextBlock) for block in blocks):
            documents.append(CorpusDocument(path.relative_to(folder).as_posix(), blocks))
    if not documents:
        raise ConfigError(f"corpus folder {folder} holds no text; expected files ending in {', '.join(TEXT_SUFFIXES)}")
    shown = {path for document in documents for path in document.images}
    return Corpus(tuple(documents), tuple(sorted(images - shown)), tuple(problems))


def describe_corpus(folder: Path) -> str:
    """sha256 over names, sizes and contents of texts: the same corpus, the same digest."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if not path.is_file() or suffix not in (*TEXT_SUFFIXES, *IMAGE_SUFFIXES):
            continue
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        if suffix in TEXT_SUFFIXES:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def split_corpus(corpus: Corpus, *, test_share: float, seed: int) -> tuple[Corpus, Corpus]:
    """(training part, test part) that share no document or image; ConfigError if there is only one document."""
    if len(corpus.documents) < 2:
        raise ConfigError(
            "the corpus has one document, a training and a test part need two; split the file, or make one"
        )
    rng = Random(f"{seed}/split")
    documents = rng.sample(corpus.documents, len(corpus.documents))
    loose = rng.sample(corpus.loose_images, len(corpus.loose_images))
    num_documents = min(max(round(test_share * len(documents)), 1), len(documents) - 1)
    num_loose = round(test_share * len(loose))
    test = Corpus(tuple(documents[:num_documents]), tuple(loose[:num_loose]))
    of_test = set(test.images)
    train = tuple(_drop_images(document, of_test) for document in documents[num_documents:])
    return Corpus(train, tuple(path for path in loose[num_loose:] if path not in of_test)), test


def _drop_images(document: CorpusDocument, unwanted: set[str]) -> CorpusDocument:
    kept = (block for block in document.blocks if not (isinstance(block, ImageBlock) and block.path in unwanted))
    return CorpusDocument(document.name, tuple(kept))


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _check_images(folder: Path, paths: Sequence[Path]) -> tuple[set[str], list[str]]:
    images, problems = set(), []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            read_image_size(path)
        except DataError as error:
            problems.append(f"{name}: {error}")
        else:
            images.add(name)
    return images, problems


def _read_blocks(path: Path, folder: Path, images: set[str], problems: list[str]) -> Iterator[Block]:
    name = path.relative_to(folder).as_posix()
    try:
        text = read_text(path)
    except DataError as error:
        problems.append(f"{name}: {error.message}")
        return
    suffix = path.suffix.lower()
    parts = split_html(text) if suffix in (".html", ".htm") else split_text(text, is_markdown=suffix != ".txt")
    for kind, content in parts:
        if kind == "text":
            yield from (TextBlock(piece) for piece in cut_text(content))
            continue
        target = _find_image(content, path.parent, folder)
        if target in images:
            yield ImageBlock(target)
        else:
            problems.append(f"{name}: image {content[:80]!r} is not a readable image of the corpus")


def _find_image(source: str, parent: Path, folder: Path) -> str:
    """Path relative to the corpus; empty when it leads out of it."""
    if "://" in source or source.startswith("data:"):
        return ""
    target = (parent / unquote(source.split("?")[0].split("#")[0])).resolve()
    root = folder.resolve()
    return target.relative_to(root).as_posix() if target.is_relative_to(root) else ""
