"""Filler: a corpus as pieces of contexts, its images under the names that a data set gives them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from internvl.errors import ConfigError
from internvl.synth.contexts import Piece
from internvl.synth.corpus.documents import Corpus, CorpusDocument, ImageBlock
from internvl.synth.model_reader import ModelReader


@dataclass(frozen=True)
class CorpusPieces:
    """Pieces of a corpus."""

    folder: Path
    corpus: Corpus
    images: Mapping[str, Piece]  # a piece for each image, by its path in the corpus

    def read(self, document: CorpusDocument) -> Iterator[Piece]:
        """The pieces of a document."""
        for block in document.blocks:
            yield self.images[block.path] if isinstance(block, ImageBlock) else Piece(text=block.text)

    def list_copies(self) -> dict[str, Path]:
        """Source of every image by its name in the data set."""
        return {piece.shown: self.folder / path for path, piece in self.images.items()}


def cut_corpus(folder: Path, corpus: Corpus, reader: ModelReader, *, prefix: str) -> CorpusPieces:
    """Pieces of a corpus whose images are called `PREFIX/NUMBER.SUFFIX` in the data set."""
    images = {}
    for index, path in enumerate(corpus.images):
        name = f"{prefix}/{index:06d}{Path(path).suffix.lower()}"
        images[path] = Piece(image=name, num_visual=reader.count_image(folder / path))
    return CorpusPieces(folder, corpus, images)


def repeat_forever(make: Callable[[], Iterator[Piece]]) -> Iterator[Piece]:
    """The pieces of `make()`, again and again; ConfigError if it gives none."""
    while True:
        piece = None
        for piece in make():
            yield piece
        if piece is None:
            raise ConfigError("there is no filler; give a corpus with text")
